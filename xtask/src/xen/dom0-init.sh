#!/bin/busybox sh
# The first domain's init: Xen's tools, then commands from the console.
/bin/busybox --install -s /bin
export PATH=$(echo /usr/lib/xen-*/bin):/bin:/sbin LD_LIBRARY_PATH=/lib/x86_64-linux-gnu
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

# A short sleep without a process of its own: 20 ms.
mkfifo /run/never
exec 3<>/run/never
nap() {
    read -r -t 0.02 -u 3 _
}
# Shows what a guest says, line by line, until it is done or its log is removed:
# `follow NAME`. One that comes by a migration has another name at first, and its
# log for good: `follow NAME FIRST_NAME`.
follow() {
    log="/var/log/xen/console/guest-${2:-$1}.log"
    while [ ! -e "$log" ]; do nap; done
    begun=
    # Lines begin with brackets: no file is meant.
    set -f
    while :; do
        # Half a line may end in a space.
        if IFS= read -r line; then
            echo "[$1] $begun$line"
            case "$line" in @done*) return ;; esac
            begun=
        else
            begun="$begun$line"
            [ -e "$log" ] || return
            nap
        fi
    done < "$log"
}
# Sets a guest's target and tells when: `aim NAME KIB`.
aim() {
    node="/local/domain/$(xl domid "$1")/memory/target"
    echo "@@aim"
    xenstore-write "$node" "$2"
}
# Finds a guest's console, as $console: `console_of NAME`. The tools take their
# time, so it is looked up once; `xl restore` makes another one.
console_of() {
    if ! read -r console < "/run/console-$1"; then
        console="$(xenstore-read "/local/domain/$(xl domid "$1")/console/tty")"
        echo "$console" > "/run/console-$1"
    fi 2> /dev/null
}
# Sends a line to a guest's console: `say NAME TEXT`.
say() {
    console_of "$1"
    echo "$2" > "$console"
}
# Waits until a guest is no more, and forgets it: `forget NAME`.
forget() {
    while xl domid "$1" > /dev/null 2>&1; do nap; done
    rm -f "/var/log/xen/console/guest-$1.log" "/run/console-$1"
}
# Changes a guest's target 60 times, some milliseconds apart, and once more, to
# five digits: `storm NAME LAST_KIB`. By hand through one connection: a process
# for each takes too long, and all writes of one process are one transaction, of
# which a guest hears once.
storm() {
    node="/local/domain/$(xl domid "$1")/memory/target"
    # XS_WRITE, no request, no transaction, the length.
    zero='\000\000\000'
    head="\\013$zero\\000$zero\\000$zero\\$(printf %03o $((${#node} + 6)))$zero"
    exec 4<>/dev/xen/xenbus
    i=0
    while [ $i -lt 60 ]; do
        printf "$head$node\\000$((24576 + (i * 7919 % 40) * 1024))" >&4
        # The guest has to hear of some: there is one CPU for both.
        read -r -t 0.005 -u 3 _
        i=$((i + 1))
    done
    printf "$head$node\\000$2" >&4
    exec 4>&-
}
# Lets a guest ask a store that does not answer for so long: `late NAME SECONDS`.
late() {
    console_of "$1"
    kill -STOP "$(cat /run/xenstored.pid)"
    echo ask > "$console"
    sleep "$2"
    kill -CONT "$(cat /run/xenstored.pid)"
}

stty -echo -onlcr < /dev/hvc0
echo "@@ready"
# Commands: `LENGTH NUMBER COMMAND`, the length that of what follows it. Part of a line is
# none. One that comes again, as its answer got lost, is answered again and not run.
last=
while read -r length line; do
    [ "${#line}" = "$length" ] || continue
    number="${line%% *}"
    if [ "$number" != "$last" ]; then
        last="$number"
        (eval "${line#* }")
        code=$?
    fi
    echo "@@done $number $code"
done < /dev/hvc0
poweroff -f
