#!/bin/busybox sh
# A Linux domain that says when its balloon has come to rest.
/bin/busybox mkdir -p /proc /sys /run
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mkfifo /run/never
exec 3<>/run/never
memory=/sys/devices/system/xen_memory/xen_memory0
told=
while :; do
    read -r current < $memory/info/current_kb
    read -r target < $memory/target_kb
    if [ "$current" = "$target" ] && [ "$current" != "$told" ]; then
        [ -n "$told" ] || echo "@ready"
        echo "@balloon current=$current"
        told=$current
    fi
    # Without a process of its own: 50 ms.
    read -r -t 0.05 -u 3 _
done
