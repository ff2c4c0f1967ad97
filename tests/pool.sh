# For scripts that need a mounted pool: makes it in a directory of its own and always cleans up. Sourced.
#
#   make_pool NAME DEVICES SIZE     mkfs over image files in $WORK
#   mount_pool NAME [OPTION..]      mounts it at $MOUNT
#   unmount_pool                    waits until the daemon is gone
#   check_pool NAME                 fsck --data, which must find nothing
#   fsx_files                       says for fsx what small and large files are
#   fsx_turn SIZE COUNT SEED WHAT   so many operations of fsx on a small or large file
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

# Every second byte of what fsx writes is the same: its data compresses by about a half.
fsx_files() {
    local weights='[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 5
fsync = 0.3
fdatasync = 0.3
posix_fallocate = 2
punch_hole = 5
sendfile = 2
posix_fadvise = 1
copy_file_range = 5'
    printf 'flen = 262144\n[opsize]\nmin = 1\nmax = 65536\n%s\n' "$weights" >"$WORK/small.toml"
    printf 'flen = 8388608\n[opsize]\nmin = 1\nmax = 1048576\n%s\n' "$weights" >"$WORK/large.toml"
}

fsx_turn() {
    local size=$1 count=$2 seed=$3
    if ! timeout 1500 fsx -q -N "$count" -S $((seed % (1 << 32))) -f "$WORK/$size.toml" -P "$WORK" "$MOUNT/$size" >"$WORK/fsx.log" 2>&1; then
        tail -60 "$WORK/fsx.log"
        fail "fsx failed: FSX_SEED=$seed FSX_OPS=$count, $size files $4"
    fi
}
