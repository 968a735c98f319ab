# Starts the machine's systemd in a guest, as the first process of its own namespaces. systemd.rs describes it.
set -e
mkdir -p /machine/files /machine/memory
mount -t hostfs machine /machine/files -o /
mount -t tmpfs -o size=50%,mode=755 memory /machine/memory
cd /machine/memory
mkdir changes work root
mount -t overlay overlay -o lowerdir=/machine/files,upperdir=changes,workdir=work root
cd root
for folder in run tmp dev etc/systemd/system; do
	mkdir -p $folder
	mount -t tmpfs -o mode=755 tmpfs $folder
done
chmod 1777 tmp
# What the machine would start besides, and what would look for its disks.
for folder in lib/systemd/system-generators lib/systemd/system/sysinit.target.wants lib/systemd/system/sockets.target.wants; do
	[ ! -d usr/$folder ] || mount -t tmpfs none usr/$folder
done
: >etc/fstab
# Without it, all units of the machine would be enabled.
echo 00000000000000000000000000000001 >etc/machine-id
cd etc/systemd/system
for unit in sysinit basic; do
	printf '[Unit]\nDescription=Nothing of the machine\nDefaultDependencies=no\n' >$unit.target
done
printf '[Unit]\nDescription=The guest\nAllowIsolate=yes\nWants=systemd-journald.socket systemd-journald-dev-log.socket\n' >guest.target
ln -s guest.target default.target
cd /machine/memory
cat >start <<'S'
cd /machine/memory/root
mount -t proc proc proc
mount --rbind /sys sys
for file in null zero full random urandom tty console; do
	[ ! -e /dev/$file ] || { : >dev/$file; mount --bind /dev/$file dev/$file; }
done
mkdir dev/shm dev/pts
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mkdir run/old
pivot_root . run/old
cd /
umount -l /run/old
exec /usr/bin/env -i container=guest PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin LANG=C.UTF-8 \
	/lib/systemd/systemd --log-target=journal --show-status=0
S
unshare -mpf --propagation private sh start >log 2>&1 </dev/null &
# The child of unshare is the first process of the namespace.
limit=$1
while [ $limit -gt 0 ]; do
	for process in /proc/[0-9]*; do
		[ -r $process/comm ] || continue
		read -r name 2>/dev/null <$process/comm || continue
		if [ "$name" = systemd ]; then
			pid=${process#/proc/}
			if nsenter -t $pid -m -p systemctl is-active -q guest.target 2>/dev/null; then
				echo $pid
				exit 0
			fi
			break
		fi
	done
	limit=$((limit-1))
	sleep 0.2
done
cat log >&2
exit 1
