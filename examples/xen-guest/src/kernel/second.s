# Where the second CPU starts: in 64-bit mode, on a stack of its own, without
# descriptor tables. The segments' descriptors count as accessed: nobody writes here.

    .section .rodata.second, "a", @progbits
    .p2align 3
second_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 64-bit code
    .quad 0x00cf93000000ffff        # data
second_gdt_pointer:
    .word second_gdt_pointer - second_gdt - 1
    .quad second_gdt

    .section .text.second, "ax", @progbits
    .global second_entry
second_entry:
    lgdt [second_gdt_pointer]
    mov eax, 16
    mov ss, eax
    mov ds, eax
    mov es, eax
    push 8
    push offset second_with_segments
    retfq
second_with_segments:
    cld
    xor ebp, ebp
    call {main}
    ud2

# Its interrupts, events all.
    .global second_event
second_event:
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    # 14 words lie on a stack the CPU aligned to 16: it still is.
    cld
    call {event}
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    iretq
    .text
