#!/bin/busybox sh
# The first program of the Linux guest: fills and frees memory when it is told to, in the words of the QEMU guest.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=95% memory /mnt
insmod /virtio_balloon.ko
echo 0 > /proc/sys/kernel/printk
stty -echo < /dev/ttyS0
mib=$(tr ' ' '\n' < /proc/cmdline | sed -n 's/^fill_mib=//p')
echo "@ready"
while read -r line; do
    case "$line" in
        fill) dd if=/dev/zero of=/mnt/file bs=1M count="$mib" 2>/dev/null && echo "@filled" || echo "@panic no room for $mib MiB" ;;
        free) rm /mnt/file && echo "@freed" ;;
    esac
done
