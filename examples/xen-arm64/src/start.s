// The header of the arm64 boot protocol, and the way to Rust: a stack, memory
// mapped one to one and cached, as Xen reads hypercalls' arguments.

    .section .text.header, "ax"
    .global image_header
image_header:
    b       start
    .long   0
    .quad   0x80000                 // offset from the start of memory
    .quad   __image_size
    .quad   0b0010                  // little endian, 4 KiB pages
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

    .text
start:
    adrp    x1, stack_top
    add     x1, x1, :lo12:stack_top
    mov     sp, x1

    // Blocks of 1 GiB: devices below, memory above.
    adrp    x1, tables
    add     x1, x1, :lo12:tables
    msr     ttbr0_el1, x1
    ldr     x1, =0x00ff             // 0: memory, write-back; 1: device
    msr     mair_el1, x1
    ldr     x1, =(25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32)
    msr     tcr_el1, x1             // 39 bits of address, cached walks
    tlbi    vmalle1
    dsb     sy
    isb
    mrs     x1, sctlr_el1
    mov     x2, #5                  // MMU, data cache
    orr     x1, x1, x2
    orr     x1, x1, #(1 << 12)      // instruction cache
    msr     sctlr_el1, x1
    mov     x1, #(3 << 20)          // vector registers are not trapped
    msr     cpacr_el1, x1
    isb
    bl      {start}
1:  b       1b

    .section .data.tables, "aw"
    .p2align 12
tables:
    .quad   0x00000000 | 3 << 53 | 1 << 10 | 1 << 2 | 1     // never executed
    .quad   0x40000000 | 1 << 10 | 3 << 8 | 1
    .skip   4096 - 16

    .section .stack, "aw"
    .p2align 12
    .skip   64 * 1024
stack_top:
