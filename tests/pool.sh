# For scripts that need a mounted pool: makes it in a directory of its own and always cleans up. Sourced.
#
#   make_pool NAME DEVICES SIZE     mkfs over image files in $WORK
#   mount_pool NAME [OPTION..]      mounts it at $MOUNT
#   unmount_pool                    waits until the daemon is gone
#   check_pool NAME                 fsck --data, which must find nothing
#   await_begin PID                 waits until the hammer that works beside $side has begun: a busy machine takes its time

cd "$(dirname "$0")/.." || exit 1
TARGET=${CARGO_TARGET_DIR:-$PWD/target}
PATH="$TARGET/tools/bin:$PATH"
ARGOSFS=${ARGOSFS:-$TARGET/release/argosfs}

need() {
    command -v "$1" >/dev/null || { echo "$0: $1 is not installed" >&2; exit 1; }
}

if [ ! -e /dev/fuse ] || [ "$(id -u)" != 0 ]; then
    echo "!!! $0 SKIPPED: needs root and /dev/fuse" >&2
    exit 77
fi
if [ ! -x "$ARGOSFS" ]; then
    cargo build --release --locked --quiet || exit 1
fi

WORK=$(mktemp -d "${PARENT:-$TARGET}/argosfs-work.XXXXXX") || exit 1
MOUNT=$WORK/mnt
export ARGOSFS_RUNTIME_DIR=$WORK/run
mkdir "$MOUNT" "$ARGOSFS_RUNTIME_DIR"

cleanup_also() { :; }

cleanup() {
    local code=$?
    if mountpoint -q "$MOUNT"; then
        "$ARGOSFS" umount "$MOUNT" || umount -l "$MOUNT"
    fi
    cleanup_also
    rm -rf "$WORK"
    exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fail() {
    echo "$0: $*" >&2
    exit 1
}

make_pool() {
    local name=$1 devices=$2 size=$3 images=() i
    for ((i = 0; i < devices; i++)); do images+=("$WORK/$name.$i.img"); done
    "$ARGOSFS" mkfs --name "$name" --size "$size" "${images[@]}" || fail "mkfs failed"
}

mount_pool() {
    local name=$1
    shift
    "$ARGOSFS" mount "$WORK/$name.0.img" "$MOUNT" "$@" || fail "mount failed"
    mountpoint -q "$MOUNT" || fail "mount said yes, but nothing is mounted"
}

unmount_pool() {
    "$ARGOSFS" umount "$MOUNT" || fail "umount failed"
    ! mountpoint -q "$MOUNT" || fail "umount said yes, but it is still mounted"
}

check_pool() {
    "$ARGOSFS" fsck --data "$WORK/$1.0.img" || fail "fsck found problems"
}

await_begin() {
    local i
    for ((i = 0; i < 3000; i++)); do
        [ -e "$side/begun" ] && return
        kill -0 "$1" 2>/dev/null || return 1
        sleep 0.02
    done
    return 1
}
