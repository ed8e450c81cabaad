#!/bin/sh
# Warm 4 KiB reads in a guest over three ways to the same raw file: QEMU's storage daemon by vhost-user-blk and by NBD, and our
# NBD export, which has a layer on top as well, as guests have it. docs/decisions/0013-vhost-user-blk.md has what came of it.
#
#   transport.sh <serve> <linux-image.deb> [rounds]
#
# <serve> is `cargo build --release -p collective-disk --example serve`; the kernel is Debian's linux-image-*-cloud-amd64. Wants
# gcc, libc6-dev, busybox-static, dpkg-deb, qemu-system-x86 and qemu-utils. Where there is KVM, ACCEL=kvm.
set -eu
serve=$1 kernel=$2 rounds=${3:-40}
work=$(mktemp -d)
children=
echo "reads a second: the best of $rounds rounds of 0.3 s, which other work on the computer disturbed least; the median"
trap 'kill $children 2>/dev/null || true; wait; rm -r "$work"' EXIT

cat >"$work/reader.c" <<'C'
/* reader <disk> <readers> <seconds>: random 4 KiB reads, past the guest's cache, each waited for; prints how many a second. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
int main(int count, char **of) {
  int readers = atoi(of[2]); double seconds = atof(of[3]);
  long *done = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  for (int reader = 0; reader < readers; reader++) {
    if (fork()) continue;
    int disk = open(of[1], O_RDONLY | O_DIRECT); void *block; unsigned random = reader + 1;
    off_t blocks = lseek(disk, 0, SEEK_END) / 4096;
    if (disk < 0 || posix_memalign(&block, 4096, 4096)) _exit(1);
    for (double end = now() + seconds; now() < end; done[reader]++) {
      random = random * 1664525 + 1013904223;
      if (pread(disk, block, 4096, (off_t)(random % blocks) * 4096) != 4096) _exit(1);
    }
    _exit(0);
  }
  long all = 0; int status;
  while (wait(&status) > 0) if (status) return 1;
  for (int reader = 0; reader < readers; reader++) all += done[reader];
  printf("%.0f\n", all / seconds);
}
C
cat >"$work/init" <<INIT
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
  /bin/busybox insmod /\$module.ko
done
for round in \$(/bin/busybox seq $rounds); do
  for readers in 1 8; do
    for disk in a:nbd b:vhost-user-blk c:ours d:ours-with-a-layer; do
      /bin/busybox echo "RESULT \${disk#*:} \$readers \$(/reader /dev/vd\${disk%%:*} \$readers 0.3)" >/dev/console
    done
  done
done
/bin/busybox poweroff -f
INIT
chmod +x "$work/init"
dpkg-deb -x "$kernel" "$work/kernel"
mkdir -p "$work/root/bin" "$work/root/dev"
gcc -O2 -static -o "$work/root/reader" "$work/reader.c"
cp /bin/busybox "$work/root/bin/" && mv "$work/init" "$work/root/"
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
  find "$work/kernel" -name "$module.ko*" -exec cp {} "$work/root/" \;
done
(cd "$work/root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/initrd"

# All of it in the page cache.
head -c 268435456 /dev/urandom >"$work/disk"
"$serve" "$work/disk" "$work/ours" & children="$children $!"
qemu-storage-daemon --blockdev "file,node-name=a,filename=$work/disk,read-only=on" \
  --blockdev "file,node-name=b,filename=$work/disk,read-only=on" \
  --nbd-server "addr.type=unix,addr.path=$work/nbd" --export nbd,id=a,node-name=a,name=disk \
  --export "vhost-user-blk,id=b,node-name=b,addr.type=unix,addr.path=$work/vhost" & children="$children $!"
for socket in ours nbd vhost; do
  while [ ! -S "$work/$socket" ]; do sleep 0.1; done
done
qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k "$work/layer" 256M
nbd() { echo "nbd,node-name=$1,read-only=on,server.type=unix,server.path=$work/$2,export=disk"; }
qemu-system-x86_64 -accel "${ACCEL:-tcg}" -machine q35 -m 256 -smp 1 -nodefaults -nographic -no-reboot \
  -object memory-backend-memfd,id=memory,size=256M,share=on -machine memory-backend=memory \
  -blockdev "$(nbd a nbd)" -device virtio-blk-pci,drive=a \
  -chardev "socket,id=b,path=$work/vhost" -device vhost-user-blk-pci,chardev=b \
  -blockdev "$(nbd c ours)" -device virtio-blk-pci,drive=c \
  -blockdev "$(nbd base ours)" -blockdev "file,node-name=file,filename=$work/layer" \
  -blockdev qcow2,node-name=d,file=file,backing=base -device virtio-blk-pci,drive=d \
  -kernel "$(find "$work/kernel/boot" -name 'vmlinuz-*')" -initrd "$work/initrd" \
  -append "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable random.trust_cpu=on mitigations=off" \
  -serial stdio -monitor none </dev/null | sed -n 's/.*RESULT //p' | tr -d '\r' |
  sort -k1,2 -k3n | awk '{ way = $1 ", readers: " $2; of[way, ++count[way]] = $3 }
    END { for (way in count) { n = count[way]; print way ":", of[way, n] ",", of[way, int((n + 1) / 2)] } }' |
  sort
