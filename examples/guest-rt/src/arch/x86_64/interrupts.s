# One stub of 16 bytes per vector: pushes a zero where the CPU pushes no error
# code, then the vector, and joins the common part.

    .section .text.interrupts, "ax", @progbits
    .p2align 4
    .global interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 256
    .p2align 4
    # Exceptions with an error code: 8, 10-14, 17, 21, 29, 30.
    .if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30))
    push 0
    .endif
    push vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

interrupt_common:
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    # 16 words lie on a stack the CPU aligned to 16: it still is.
    mov rdi, rsp
    cld
    call {dispatch}
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
    .text
