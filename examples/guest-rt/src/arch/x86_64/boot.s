# PVH entry: QEMU (-kernel) and Xen (type="pvh") both start here, in 32-bit
# protected mode with paging off and EBX pointing at hvm_start_info.
# Maps the first 4 GiB one to one and goes on in 64-bit mode.

    .section .note.pvh, "a", @note
    .p2align 2
    .long 4                         # size of the name
    .long 8                         # size of the value: QEMU reads 8 bytes
    .long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

    .section .stack, "aw", @nobits
    .p2align 12
    .skip 512 * 1024
    .global boot_stack_top          # of other entries, too
boot_stack_top:

    .section .bss.boot_tables, "aw", @nobits
    .p2align 12
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pd:
    .skip 4 * 4096

    .section .rodata.boot_gdt, "a", @progbits
    .p2align 3
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff        # 64-bit code
    .quad 0x00cf92000000ffff        # data
boot_gdt_pointer:
    .word boot_gdt_pointer - boot_gdt - 1
    .long boot_gdt

    .section .text.boot, "ax", @progbits
    .code32
    .global pvh_entry
pvh_entry:
    cli
    cld
    mov esp, offset boot_stack_top
    mov esi, ebx

    # The tables lie in .bss, which the loader has zeroed.
    mov eax, offset boot_pdpt
    or eax, 3                       # present, writable
    mov dword ptr [boot_pml4], eax

    mov eax, offset boot_pd
    or eax, 3
    xor ecx, ecx
1:  mov dword ptr [boot_pdpt + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, 4
    jb 1b

    xor ecx, ecx
    mov eax, 0x83                   # present, writable, 2 MiB
2:  mov dword ptr [boot_pd + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 4 * 512
    jb 2b

    mov eax, offset boot_pml4
    mov cr3, eax
    mov eax, cr4
    or eax, (1 << 5) | (3 << 9)     # PAE; SSE, for ram.rs alone
    mov cr4, eax
    mov ecx, 0xc0000080             # EFER
    rdmsr
    or eax, (1 << 8) | (1 << 11)    # long mode, no-execute
    wrmsr
    mov eax, cr0
    and eax, ~(3 << 2)              # no emulation of, no trap on SSE
    or eax, (1 << 31) | (1 << 16) | 3   # paging, write protect, SSE, protected mode
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    # A far return instead of a far jump: no assembler agrees on its syntax.
    push 8
    mov eax, offset boot_long_mode
    push eax
    retf

    .code64
boot_long_mode:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rsp, offset boot_stack_top
    mov edi, esi                    # also clears the upper half
    xor ebp, ebp
    call {start}
    ud2
    .text
