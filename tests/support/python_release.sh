#!/usr/bin/env bash
# python_release.sh RELEASE -- COMMAND [ARGUMENT ...]
#
# Runs COMMAND where /usr is that of Debian's release RELEASE: `python3` is that release's Python (sid has the newest),
# and rabbitmq-server is that release's RabbitMQ. The other folders (/home, /tmp and others) are this
# machine's. No other process sees a change, and the exit status is that of COMMAND.
#
#   tests/support/python_release.sh sid -- python3 --version
#
# A release is a root file system in $PYTHON_RELEASES/RELEASE (default: /var/tmp/edk-bridge-python). It is made with
# debootstrap, from the Debian mirror of this machine, if it does not exist. This needs root.
set -euo pipefail

fail() { echo "${0##*/}: $*" >&2; exit 2; }

releases=${PYTHON_RELEASES:-/var/tmp/edk-bridge-python}
sources=/etc/apt/sources.list.d/debian.sources
packages=python3,python3-venv,openssl,rabbitmq-server
[[ $# -ge 3 && $1 =~ ^[a-z]+$ && $2 == -- ]] || fail "usage: ${0##*/} RELEASE -- COMMAND [ARGUMENT ...]"
root=$releases/$1

if [ "${PYTHON_RELEASE_INSIDE:-}" != "$$" ]; then
  [ "$(id -u)" = 0 ] || fail "a root file system of Debian's $1 needs root"
  # Any user may write to /var/tmp, and files found here run as root.
  mkdir -m 755 "$releases" 2>/dev/null || :
  [ -d "$releases" ] && [ ! -L "$releases" ] && [ -O "$releases" ] && [ -z "$(find "$releases" -maxdepth 0 -perm /022)" ] ||
    fail "$releases is not a folder that root alone can write to: remove it, or set PYTHON_RELEASES"
  if ! [ -x "$root/usr/bin/python3" ]; then
    command -v debootstrap >/dev/null || fail "debootstrap is not installed: apt-get install debootstrap"
    mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' "$sources" 2>/dev/null | head -n 1)
    [ -n "$mirror" ] || fail "$sources names no mirror"
    echo "${0##*/}: making $root, which takes a minute or two" >&2
    umask 022
    making=$(mktemp -d "$root.XXXXXX")
    chmod 755 "$making"
    # debootstrap mounts /proc in the new root. In a separate namespace, this mount always ends with the command.
    if ! unshare --mount --propagation private -- \
      debootstrap --variant=minbase --include="$packages" "$1" "$making" "$mirror" >"$root.log" 2>&1; then
      rm -rf "$making"
      fail "debootstrap failed; see $root.log"
    fi
    mv -T "$making" "$root"
  fi
  # unshare becomes the second run of this script, which therefore has the same process id.
  PYTHON_RELEASE_INSIDE=$$ exec unshare --mount --propagation private -- "$0" "$@"
fi
unset PYTHON_RELEASE_INSIDE
shift 2

for folder in /* /var/tmp; do
  case $folder in /bin | /boot | /etc | /lib* | /sbin | /usr | /var) continue ;; esac
  if [ -d "$folder" ] && ! [ -L "$folder" ]; then
    mkdir -p "$root$folder"
    mount --rbind "$folder" "$root$folder"
  fi
done
# Certificates and pip's configuration are those that pip uses on this machine. OpenSSL's own configuration is not.
mkdir -p "$root/etc/ssl/certs"
mount --bind /etc/ssl/certs "$root/etc/ssl/certs"
for file in /etc/hosts /etc/hostname /etc/resolv.conf /etc/passwd /etc/group /etc/pip.conf; do
  [ -e "$file" ] || continue
  [ -e "$root$file" ] || touch "$root$file"
  mount --bind "$(realpath "$file")" "$root$file"
done

# The PATH of the caller may lead to another Python, in /root or /opt. Erlang needs a locale of UTF-8 in both roots.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
exec chroot "$root" /bin/sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"
