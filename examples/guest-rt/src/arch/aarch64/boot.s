// Entry: QEMU (-kernel ELF) starts here at EL1 with the MMU off, and has put
// the device tree at the start of RAM. Maps the first GiB, which is devices,
// and the next three one to one, and goes on with caches and a stack.

    .section .stack, "aw", %nobits
    .p2align 12
    .skip 512 * 1024
boot_stack_top:

    // For exceptions, which may come of a bad stack.
    .section .bss.exception_stack, "aw", %nobits
    .p2align 12
    .skip 32 * 1024
exception_stack_top:

    .section .bss.boot_tables, "aw", %nobits
    .p2align 12
boot_level0:
    .skip 4096
boot_level1:
    .skip 4096

    .section .text.boot, "ax", %progbits
    .global boot_entry
boot_entry:
    msr daifset, #0xf

    ldr x0, =__bss_start
    ldr x1, =__bss_end
1:  stp xzr, xzr, [x0], #16
    cmp x0, x1
    b.lo 1b

    ldr x0, =boot_level0
    ldr x1, =boot_level1
    orr x2, x1, #3                  // a table
    str x2, [x0]
    ldr x2, =0x0060000000000401     // a block: device, accessed, never executed
    str x2, [x1]
    ldr x2, =0x0000000040000705     // blocks: memory, shareable, accessed
    mov x3, #0x40000000
    str x2, [x1, #8]
    add x2, x2, x3
    str x2, [x1, #16]
    add x2, x2, x3
    str x2, [x1, #24]

    mov x2, #0xff00                 // 0: device; 1: memory, written back
    msr mair_el1, x2
    // Lower half only: 48 bits, pages of 4 KiB, walks cached and shareable.
    ldr x2, =0x00803510
    mrs x3, id_aa64mmfr0_el1
    and x3, x3, #7
    cmp x3, #5                      // no more than 48 bits of physical address
    mov x4, #5
    csel x3, x3, x4, lo
    orr x2, x2, x3, lsl #32
    msr tcr_el1, x2
    msr ttbr0_el1, x0
    isb
    tlbi vmalle1
    dsb nsh
    isb
    mrs x2, sctlr_el1
    mov x3, #0x1005                 // MMU and caches
    orr x2, x2, x3
    msr sctlr_el1, x2
    isb

    ldr x2, =exception_vectors
    msr vbar_el1, x2
    // Exceptions use the other stack pointer than the code they interrupt.
    msr spsel, #1
    ldr x2, =exception_stack_top
    mov sp, x2
    msr spsel, #0
    ldr x2, =boot_stack_top
    mov sp, x2
    mov x29, xzr
    mov x30, xzr
    bl {start}
    b .
    .ltorg
    .text
