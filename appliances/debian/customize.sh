# Runs inside the installed system: makes it start fast, and takes out what each machine must make for itself.
systemctl enable systemd-networkd.service nginx.service

# A virtual machine of a few minutes has no use for these; each costs a process at every start.
systemctl mask systemd-remount-fs.service systemd-journal-flush.service systemd-modules-load.service \
  systemd-networkd-wait-online.service systemd-timesyncd.service e2scrub_reap.service \
  e2scrub_all.timer apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer \
  systemd-pstore.service systemd-rfkill.socket systemd-random-seed.service systemd-update-utmp.service \
  systemd-update-utmp-runlevel.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
  systemd-network-generator.service kmod-static-nodes.service modprobe@.service \
  sys-fs-fuse-connections.mount sys-kernel-config.mount dev-mqueue.mount \
  sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount \
  systemd-journal-catalog-update.service systemd-hwdb-update.service ldconfig.service
systemctl set-default multi-user.target

# An empty machine-id is filled at the first start, without being taken for a fresh installation.
: > /etc/machine-id
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed /etc/ssh/ssh_host_*
passwd -d root > /dev/null

# Manuals and translations of packages that came before dpkg was told to leave them out.
rm -rf /usr/share/man/* /usr/share/info/* /usr/share/locale/*
find /usr/share/doc -type f ! -name copyright -delete

# Lists and logs of the building differ from build to build.
rm -rf /var/log/*.log /var/log/apt/* /var/cache/apt/*.bin /var/lib/apt/lists/* /var/cache/debconf/*-old \
  /var/lib/dpkg/*-old /var/cache/ldconfig/aux-cache /tmp/*

# The resolver of QEMU's address translation; it is at this address on every host.
echo 'nameserver 10.0.2.3' > /etc/resolv.conf

# Says that /etc and /var fit the packages: else the first start, which is every start, would bring them up to date.
touch /etc/.updated /var/.updated
