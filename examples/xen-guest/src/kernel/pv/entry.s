# Where Xen enters this kernel as a PV guest: in 64-bit mode, in ring 3, with
# paging on. The ELF notes lie beside the one of the PVH entry.

    .macro note type
    .p2align 2
    .long 4                         # size of the name
    .long 8                         # size of the value
    .long \type
    .asciz "Xen"
    .endm

    .section .note.pvh, "a", @note
    note 6                          # GUEST_OS
    .ascii "balloon\0"
    note 5                          # XEN_VERSION
    .ascii "xen-3.0\0"
    note 8                          # LOADER
    .ascii "generic\0"
    note 9                          # PAE_MODE
    .ascii "yes\0\0\0\0\0"
    note 3                          # VIRT_BASE: memory is one to one
    .quad 0
    note 1                          # ENTRY
    .quad pv_entry
    note 2                          # HYPERCALL_PAGE
    .quad xen_hypercall_page

    .section .text.pv, "ax", @progbits
pv_entry:
    cld
    mov rdi, rsi                    # start_info
    mov rsp, offset boot_stack_top
    xor ebp, ebp
    call {start}
    ud2

# Events. Xen pushed rcx and r11 below the usual frame, and lets further events
# wait. The hypercall that returns also lets them in, in one step.
    .global pv_upcall
pv_upcall:
    push rax
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    # 14 words lie on a stack that Xen aligned to 16: it still is.
    cld
    call {upcall}
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rax
    pop rcx
    pop r11
    push 0                          # flags: not from a system call
    # What Xen takes from the stack; it does not come back here.
    push rcx
    push r11
    push rax
    mov eax, 23                     # iret
    syscall

# A return that Xen could not make: nothing is known any more.
    .global pv_failsafe
pv_failsafe:
    mov edi, 255
    jmp pv_trap

# Exceptions, 16 bytes each. None is expected, so none returns.
    .p2align 4
    .global pv_traps
pv_traps:
    .set vector, 0
    .rept 32
    .p2align 4
    mov edi, vector
    jmp pv_trap
    .set vector, vector + 1
    .endr

pv_trap:
    mov rsi, rsp
    and rsp, -16
    call {trap}
    ud2
    .text
