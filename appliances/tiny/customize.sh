# Runs inside the unpacked packages, under busybox. The system is what it gathers in /system.
/bin/busybox mkdir -p /system/bin /system/tmp /system/home /system/root /system/run /system/var /system/lib/modules
/bin/busybox cp /bin/busybox /system/bin/
b=/system/bin/busybox

release=$($b ls /lib/modules)
for name in virtio/virtio virtio/virtio_ring virtio/virtio_pci_modern_dev virtio/virtio_pci_legacy_dev \
  virtio/virtio_pci block/virtio_blk char/virtio_console acpi/button input/evdev; do
  $b cp "/lib/modules/$release/kernel/drivers/$name.ko" /system/lib/modules/
done
$b cp "/boot/vmlinuz-$release" /system/vmlinuz

# qemu-ga and what it links with.
libraries='libudev.so.1|libnuma.so.1|liburing.so.2|libglib-2.0.so.0|libgmodule-2.0.so.0|libm.so.6|libc.so.6|libpcre2-8.so.0'
$b mkdir -p /system/lib64 /system/lib/x86_64-linux-gnu
for library in $($b find /lib /usr/lib -name '*.so*' | $b grep -E "/($libraries)\$"); do
  $b cp -L "$library" /system/lib/x86_64-linux-gnu/
done
$b cp -L /lib64/ld-linux-x86-64.so.2 /system/lib64/
$b mkdir -p /system/sbin
$b cp /usr/sbin/qemu-ga /sbin/init /sbin/say /sbin/shutdown /system/sbin/
$b ln -s busybox /system/bin/sh
$b mkdir /system/etc
$b cp /etc/fstab /etc/appliance-version /system/etc/

# The first root: busybox, the disk's drivers, and a script that moves on to the disk.
$b mkdir -p /first/bin /first/dev /first/proc /first/sys /first/disk /first/modules
$b cp $b /first/bin/
for name in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
  $b cp "/system/lib/modules/$name.ko" /first/modules/
done
$b find /first -exec $b touch -h -d '2023-06-10 00:00:00' {} +
(cd /first && $b find . | $b sort |
  $b cpio -o -H newc -R 0:0 --ignore-devno --renumber-inodes) > /system/initrd.img 2> /dev/null

$b mkdir -p /system/dev /system/proc /system/sys
/system/bin/busybox chroot /system /bin/busybox --install -s /bin
