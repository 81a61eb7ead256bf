#!/bin/sh
# Process 1 of the emulated board: mounts, the network that QEMU gives, sshd, and a wait for whoever is left alone.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
bb=/bin/busybox
$bb mount -o remount,rw /
for fs in proc:/proc sysfs:/sys devtmpfs:/dev; do
    grep -q " ${fs#*:} " /proc/mounts 2> /dev/null || $bb mount -t "${fs%%:*}" none "${fs#*:}"
done
$bb mkdir -p /dev/pts /dev/shm /run/sshd
$bb mount -t devpts -o gid=5,mode=620 none /dev/pts
$bb mount -t tmpfs -o mode=1777 none /dev/shm
$bb mount -t tmpfs -o mode=755 none /run
$bb mount -t tmpfs -o mode=1777,size=64m none /tmp
$bb mkdir -p -m 755 /run/sshd
for word in $(cat /proc/cmdline); do
    case $word in board.epoch=*) date -u -s "@${word#*=}" > /dev/null ;; esac
done
$bb hostname board
$bb ip link set lo up
$bb ip link set eth0 up
$bb ip addr add 10.0.2.15/24 dev eth0
while :; do
    /usr/sbin/sshd -D -e &
    echo "board: sshd started after $(cut -d' ' -f1 /proc/uptime) s"
    wait
    sleep 1
done
