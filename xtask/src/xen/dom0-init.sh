#!/bin/busybox sh
# The first domain's init: Xen's tools, then commands from the console.
/bin/busybox --install -s /bin
export PATH=/usr/lib/xen-4.17/bin:/bin:/sbin LD_LIBRARY_PATH=/lib/x86_64-linux-gnu
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
for m in xen-privcmd xenfs xen-evtchn xen-gntdev xen-gntalloc; do insmod /mods/$m.ko || echo "insmod $m failed"; done
mount -t xenfs xenfs /proc/xen
xenstored --pid-file /run/xenstored.pid
xen-init-dom0
xenconsoled --log=guest --log-dir=/var/log/xen/console --pid-file=/run/xenconsoled.pid

# Shows what a guest says, line by line: `follow NAME`.
follow() {
    while [ ! -e "/var/log/xen/console/guest-$1.log" ]; do usleep 20000; done
    tail -n +1 -f "/var/log/xen/console/guest-$1.log" | while read -r line; do echo "[$1] $line"; done
}
# Sends a line to a guest's console: `say NAME TEXT`.
say() {
    echo "$2" > "$(xenstore-read "/local/domain/$(xl domid "$1")/console/tty")"
}
# Changes a guest's target 60 times as fast as it goes: `storm NAME LAST_KIB`.
storm() {
    node="/local/domain/$(xl domid "$1")/memory/target"
    i=0
    while [ $i -lt 60 ]; do
        xenstore-write "$node" $((24576 + (i * 7919 % 40) * 1024))
        i=$((i + 1))
    done
    xenstore-write "$node" "$2"
}

stty -echo -onlcr < /dev/hvc0
echo "@@ready"
while read -r line; do
    (eval "$line")
    echo "@@done $?"
done < /dev/hvc0
poweroff -f
