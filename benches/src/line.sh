# Changes a system disk in place: mounts its file system and runs a shell text inside, with apt at hand.
# line.sh DISK OFFSET DOWNLOADS COMMANDS; in name spaces of its own, so that its mounts go with it.
set -eu
disk=$1 offset=$2 downloads=$3 commands=$4
root=$downloads/root
mkdir -p "$root" "$downloads/lists/partial" "$downloads/archives/partial"
mount -o "loop,offset=$offset,noatime" "$disk" "$root"

# Lists and packages stay outside: they are of no use in an appliance.
mount --bind "$downloads/lists" "$root/var/lib/apt/lists"
mount --bind "$downloads/archives" "$root/var/cache/apt/archives"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
cp /etc/resolv.conf "$root/tmp/resolv.conf"
mount --bind "$root/tmp/resolv.conf" "$root/etc/resolv.conf"

# No package starts a daemon here.
printf '#!/bin/sh\nexit 101\n' > "$root/tmp/policy"
chmod +x "$root/tmp/policy"
: > "$root/usr/sbin/policy-rc.d"
mount --bind "$root/tmp/policy" "$root/usr/sbin/policy-rc.d"

{
  grep '^deb ' "$root/etc/apt/sources.list"
  sed -n 's/^\(deb .* bookworm\) main/\1-backports main/p' "$root/etc/apt/sources.list"
} > "$root/tmp/sources.list"
{
  echo 'Dir::Etc::SourceList "/tmp/sources.list";'
  echo 'Dir::Etc::SourceParts "/dev/null";'
  echo 'Acquire::Languages "none";'
  echo 'Acquire::Retries "3";'
  echo 'APT::Install-Recommends "false";'
  echo 'APT::Get::Assume-Yes "true";'
  echo 'Binary::apt-get::APT::Keep-Downloaded-Packages "true";'
  echo 'Dpkg::Options { "--force-confold"; "--force-confdef"; "--force-unsafe-io"; };'
  apt-config dump Acquire::http::Proxy
} > "$root/tmp/apt.conf"
DEBIAN_FRONTEND=noninteractive LC_ALL=C APT_CONFIG=/tmp/apt.conf chroot "$root" /bin/sh -euc "$commands"

umount "$root/usr/sbin/policy-rc.d"
rm "$root/usr/sbin/policy-rc.d"
umount -R "$root"
