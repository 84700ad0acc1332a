# A peer of the side-by-side harness: its own replicate.sh, and deltas of which the changes are known beforehand (K2, K3), through `replicate track`.
# Run the harness from its folder with PEERS_FILES=<this folder>. The tracker serves a copy of the base beside; the changes come to it over NBD, and one cycle is measured.
# A cycle begins when its freeze command ends, and that waits for a word in a pipe: nothing but the cycle is in the measured time.
. "${HERE:-.}/peers/replicate.sh"
PEER_DESC="replicate over TLS: send (scan), track (journal of changes)"; PEER_CAN="$PEER_CAN known"
tracked() { # waits for the next point
  while IFS= read -r line; do case $line in *'"event":"done"'*) echo "$line"; return 0;; *'"level":50'*) echo "$line" >&2; return 1;; esac; done <"$SSRC/events"; }
peer_prep_known() { pki; cp --sparse=always "$BASE" "$SSRC/src.raw"; mkfifo "$SSRC/go" "$SSRC/events"
  # Both pipes have a reader and a writer as long as the tracker lives, so that nobody waits for the other to open them.
  setsid $R track "$SSRC/src.raw" --format raw --nbd "unix:$SSRC/nbd.sock" --send 127.0.0.1:$PORT/target --tls "$WORK/pki/send" --json --log-level error \
    --every 0 --freeze "read word <'$SSRC/go'" --thaw : --freeze-limit 1h ${RFLAGS:-} >"$SSRC/tracker.log" 2>&1 1<>"$SSRC/events" 3<>"$SSRC/go" </dev/null &
  echo go >"$SSRC/go"; tracked || return 1
  /usr/bin/python3 - "$SSRC/nbd.sock" "$SRC" "$DIRTY" <<'PY'
import json, nbd, os, sys
socket, source, dirty = sys.argv[1:]
disk = nbd.NBD()
disk.connect_uri('nbd+unix:///?socket=' + socket)
image = os.open(source, os.O_RDONLY)
for offset, left in json.load(open(dirty))['extents']:
    while left:
        length = min(left, 1 << 20)
        disk.pwrite(os.pread(image, length, offset), offset)
        offset += length
        left -= length
disk.flush()
disk.shutdown()
PY
}
peer_known() { echo go >"$SSRC/go"; tracked >"$SSRC/known.json" && cat "$SSRC/known.json"; }
