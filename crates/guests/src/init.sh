#!/bin/busybox sh
# The init process of a guest: loads the modules, then serves each serial port in a shell of its own. port.rs describes the protocol.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin:/usr/local/bin HOME=/root TERM=dumb
. /etc/guest
# The first root file system cannot be pivoted away from, which a container runtime does, so the guest runs on a mount of it.
if [ -n "$containers" ] && [ "$1" != moved ]; then
	mount --bind / /root && cd /root && mount --move . / && exec chroot . /init moved
fi
cd /
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /run/port /run/spawned
mount -t tmpfs tmp /tmp
[ -z "$containers" ] || mount -t cgroup2 cgroup /sys/fs/cgroup
exec </dev/null >/dev/console 2>&1

for module in /modules/*.ko; do
	[ -e "$module" ] && { insmod "$module" || echo "init: cannot load $module"; }
done
hostname "$name"
ip link set lo up
if [ -n "$network" ]; then
	ip link set eth0 up
	ip address add 10.0.2.15/24 dev eth0
	ip route add default via 10.0.2.2
fi
read -r boot </proc/sys/kernel/random/boot_id

# A new process costs 20 ms in User-mode Linux, so what the shell can do itself has none.

# Sends "done ID STATUS SIZE SIZE", then standard output and standard error.
answer() {
	id=$1 status=$2
	set -- 0 0
	if [ -s "$own/out" ] || [ -s "$own/err" ]; then set -- $(stat -c %s "$own/out" "$own/err"); fi
	echo "done $id $status $1 $2"
	if [ "$1$2" != 00 ]; then cat "$own/out" "$own/err"; fi
}

serve() {
	own=/run/port/${1##*/}
	mkdir -p "$own"
	# A port can be opened only once.
	exec 0<>"$1" 1>&0
	# Ports of a virtio-serial device are no terminals.
	case $1 in /dev/tty*) stty raw -echo ;; esac
	echo "ready $boot"
	while :; do
		# End of file: the host is not connected at the moment.
		read -r verb id number text || { sleep 0.1; continue; }
		: >"$own/out"
		: >"$own/err"
		case $verb in
		run)
			printf %b "$text" >"$own/command"
			timeout -s KILL "$number" sh "$own/command" </dev/null >"$own/out" 2>"$own/err"
			answer "$id" $?
			;;
		spawn)
			folder=/run/spawned/$number
			mkdir -p "$folder"
			printf %b "$text" >"$folder/command"
			(
				setsid sh "$folder/command" >"$folder/out" 2>"$folder/err" &
				echo $! >"$folder/pid"
				wait $!
				echo $? >"$folder/ended"
				mv "$folder/ended" "$folder/status"
			) </dev/null >/dev/null 2>&1 &
			answer "$id" 0
			;;
		push)
			head -c "$number" >"$own/out"
			path=$(printf %b "$text")
			mkdir -p "${path%/*}/" && mv "$own/out" "$path" 2>"$own/err"
			status=$?
			: >"$own/out"
			answer "$id" $status
			;;
		attach)
			printf %b "$text" >"$own/command"
			echo "attached $id"
			exec sh "$own/command"
			;;
		*)
			echo "unknown verb: $verb" >"$own/err"
			answer "$id" 127
			;;
		esac
	done
}

# Unquoted: a list, or a pattern.
for port in $ports; do
	serve "$port" &
done
echo "init: ready"
# Also reaps orphaned processes.
wait
exec sleep 2147483647
