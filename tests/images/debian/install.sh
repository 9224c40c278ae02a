#!/bin/bash
# Installer of the Debian test image: runs in a chroot on the new root, as the
# installers of metal-stack's images do. Reads /etc/metal, leaves a bootable disk
# and /etc/metal/boot-info.yaml.
set -euo pipefail

allocation=/etc/metal/machine-allocation.yaml
details=/etc/metal/machine-details.yaml

# value FILE KEY: a top-level scalar of a YAML file, without its quotes.
value() {
    sed -n "s/^$2:[[:space:]]*[\"']\{0,1\}\([^\"']*\)[\"']\{0,1\}[[:space:]]*\$/\1/p" "$1" | head -n 1
}

hostname=$(value "$allocation" hostname)
root_uuid=$(value "$details" root_uuid)
console=$(value "$details" console)
: "${hostname:?$allocation names no hostname}" "${root_uuid:?$details names no root_uuid}"
console=${console:-ttyS0,115200n8}
cmdline="console=$console root=UUID=$root_uuid ro net.ifnames=0"

echo "$hostname" >/etc/hostname
printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n' "$hostname" >/etc/hosts

install -d -m 0700 /root/.ssh
sed -n '/^sshPublicKeys:/,/^[^[:space:]-]/s/^[[:space:]]*- *[\"'"'"']\{0,1\}\(ssh-[^\"'"'"']*\)[\"'"'"']\{0,1\}$/\1/p' \
    "$allocation" >/root/.ssh/authorized_keys
chmod 0600 /root/.ssh/authorized_keys
echo "root:test" | chpasswd
# Host keys belong to one machine, not to the image.
ssh-keygen -A

cat >/etc/default/grub <<GRUB
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
# No udev in the chroot: update-grub would name the root by its device node.
GRUB_CMDLINE_LINUX="console=$console root=UUID=$root_uuid net.ifnames=0 metal.boot=firmware"
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
GRUB_DISABLE_OS_PROBER=true
GRUB_DISABLE_RECOVERY=true
GRUB
grub-install --target=x86_64-efi --efi-directory=/boot/efi --boot-directory=/boot \
    --bootloader-id=metal-debian --removable --no-nvram
update-grub

kernel=$(readlink -f /vmlinuz)
initrd=$(readlink -f /initrd.img)
cat >/etc/metal/boot-info.yaml <<INFO
initrd: $initrd
cmdline: "$cmdline metal.boot=kexec"
kernel: $kernel
bootloader_id: metal-debian
INFO
echo "installed for $hostname, root $root_uuid"
