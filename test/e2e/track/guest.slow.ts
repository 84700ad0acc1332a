/**
 * A real machine on a tracked image: Linux in QEMU with ext4 on our NBD export, which writes and syncs files while points are taken, with its file system frozen
 * for the cut and without; the tracker is killed meanwhile. The points are restored, and a guest mounts them: the journal is replayed, the file system is sound, and
 * what was synced before the cut is there. The last one of each kind is booted: its own init, from its root, goes on writing.
 */
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { buildGuest, freePort, Guest, guestObstacle, kvmWorks } from "../guest.ts";
import {
  fsck,
  hasTool,
  type JsonLine,
  makeExt4,
  makePki,
  type Receiver,
  replicate,
  runTool,
  type Scope,
  startReceiver,
  tempDir,
} from "../kit.ts";
import { Tracker, watchCuts } from "./kit.ts";

const volumeMiB = 256;
/** Time for which the guest waits for a tracker that is started anew. */
const reconnectSeconds = 600;
/** Points of each kind that are looked into. */
const pointsOfKind = 3;
/** Files a guest has removed by then are older than these: see guest.mjs. */
const filesKept = 2_000;

const init = `
if grep -q " look" /proc/cmdline; then
  mkdir /disk
  for disk in /dev/vd*; do
    dmesg -c > /tmp/before
    if mount -t ext4 $disk /disk; then
      umount /disk
      echo "{\\"event\\":\\"mounted\\",\\"disk\\":\\"$disk\\",\\"replayed\\":$(dmesg | grep -c 'recovery complete')}"
    else
      echo "{\\"event\\":\\"trouble\\",\\"disk\\":\\"$disk\\"}"
    fi
  done
elif grep -q " boot" /proc/cmdline; then
  mkdir /disk
  mount -t ext4 /dev/vda /disk || echo '{"event":"trouble","what":"no mount"}'
  for of in dev proc sys; do mount --move /$of /disk/$of; done
  exec switch_root /disk /sbin/init
else
  stty -F /dev/ttyS1 -echo
  mkdir /disk
  mount -t ext4 /dev/vda /disk || echo '{"event":"trouble","what":"no mount"}'
  node /test/guest.mjs /disk || echo '{"event":"trouble","what":"writer"}' &
  while read -r word; do
    case $word in
      freeze) fsfreeze --freeze /disk && echo '{"event":"frozen"}' || echo '{"event":"trouble","what":"freeze"}' ;;
      thaw) fsfreeze --unfreeze /disk && echo '{"event":"thawed"}' || echo '{"event":"trouble","what":"thaw"}' ;;
      end) echo "{\\"event\\":\\"ended\\",\\"errors\\":$(dmesg | grep -c -E 'I/O error|EXT4-fs (error|warning)|blocked for more')}" ;;
    esac
  done < /dev/ttyS1
fi
`;

/** Process 1 of the machine that lives on the volume. */
const ownInit = `#!/bin/busybox sh
export PATH=/bin
echo "{\\"event\\":\\"booted\\",\\"replayed\\":$(dmesg | grep -c 'recovery complete'),\\"root\\":\\"$(grep -c '^/dev/vda / ext4 rw' /proc/mounts)\\"}"
for file in $(find /d* -type f | head -n 20); do cat $file > /dev/null || echo '{"event":"trouble","what":"file"}'; done
dd if=/dev/urandom of=/written bs=64k count=16 2> /dev/null && sync && mount -o remount,ro / && echo '{"event":"written"}'
poweroff -f
`;

/** What the machine boots from: the volume's first files. */
function makeRoot(tree: string): string {
  for (const name of ["bin", "sbin", "dev", "proc", "sys"]) mkdirSync(join(tree, name), { recursive: true });
  const busybox = join(tree, "bin/busybox");
  copyFileSync(runTool("which", ["busybox"]).stdout.trim(), busybox);
  for (const tool of ["sh", "dmesg", "grep", "find", "head", "cat", "dd", "sync", "mount", "poweroff"])
    symlinkSync("busybox", join(tree, "bin", tool));
  writeFileSync(join(tree, "sbin/init"), ownInit, { mode: 0o755 });
  return tree;
}

function obstacle(): string | undefined {
  const missing = ["debugfs", "e2fsck"].filter((name) => !hasTool(name));
  if (missing.length > 0) return `not installed: ${missing.join(", ")}`;
  const inTheWay = guestObstacle();
  if (inTheWay !== undefined) return inTheWay;
  return /^fsfreeze$/m.test(runTool("busybox", ["--list"]).stdout) ? undefined : "busybox has no fsfreeze";
}

/** A point, and what must be in it. */
interface Taken {
  readonly point: number;
  readonly frozen: boolean;
  readonly due: readonly JsonLine[];
}

test("a guest on ext4 over the NBD export: points with and without freeze, the tracker killed in between", {
  timeout: 2 * 3_600_000,
}, async (t) => {
  const inTheWay = obstacle();
  if (inTheWay !== undefined) t.skip(inTheWay);
  const dir = tempDir(t);
  const pki = await makePki(t, join(dir, "pki"));
  const program = join(import.meta.dirname, "guest.mjs");
  const system = buildGuest(dir, { init, copies: { "/test/guest.mjs": program } });
  const kvm = kvmWorks(system);
  process.stdout.write(kvm ? "with KVM\n" : "KVM does not run the guest here: it is emulated, which is slow\n");
  const image = join(dir, "vm.raw");
  makeExt4(image, volumeMiB, makeRoot(join(dir, "root")));
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv, args: ["--keep", "all"] });

  const running: { guest?: Guest } = {};
  const count = (event: string): number => running.guest?.lines.filter((line) => line.event === event).length ?? 0;
  const synced = (): readonly JsonLine[] =>
    running.guest?.lines.filter(({ event }) => event === "synced").slice(-filesKept) ?? [];
  const ask = async (word: string, answer: string): Promise<void> => {
    const before = count(answer);
    running.guest?.say(word);
    await running.guest?.waitFor(() => count(answer) > before || count("trouble") > 0, answer);
  };
  const moreFiles = async (files: number): Promise<void> => {
    const wanted = count("synced") + files;
    await running.guest?.waitFor(() => count("synced") >= wanted || count("trouble") > 0, "synced");
  };

  // Frozen for each cut, once there is something to freeze.
  let tracker: Tracker | undefined;
  const cuts: { readonly linesBefore: number; readonly due: readonly JsonLine[] }[] = [];
  let isFrozen = false;
  let asked: Promise<void> | undefined;
  /** The commands of a tracker that is killed outlive it, and are told nothing any more. */
  let isKilled = false;
  const aroundCuts = await watchCuts(t, dir, {
    async freeze() {
      await tracker?.heard();
      if (count("synced") === 0 || isKilled) return;
      asked = ask("freeze", "frozen");
      await asked;
      isFrozen = true;
      cuts.push({ linesBefore: tracker?.done.length ?? 0, due: synced() });
    },
    async thaw() {
      if (!isFrozen || isKilled) return;
      asked = ask("thaw", "thawed");
      await asked;
      isFrozen = false;
    },
  });
  const socket = join(dir, "vm.sock");
  const track = async (...args: readonly string[]): Promise<Tracker> =>
    await Tracker.start(t, {
      ...{ image, socket, to: `127.0.0.1:${String(receiver.port)}/vm`, tls: pki.send },
      args: ["--every", "0", ...args],
    });
  tracker = await track(...aroundCuts, "--freeze-limit", "10m");
  const kernelLog = join(dir, "kernel.log");
  const guest = new Guest(t, { system, kvm, port: await freePort(), diskSocket: socket, reconnectSeconds, kernelLog });
  running.guest = guest;
  await moreFiles(1);
  while (cuts.length <= pointsOfKind) await tracker.nextDone(1);
  await tracker.nextDone(1);
  expect(count("trouble"), guest.text).toBe(0);
  const taken: Taken[] = cuts.flatMap(({ linesBefore, due }, nth) => {
    const line = tracker?.done[linesBefore];
    if (line === undefined || cuts[nth + 1]?.linesBefore === linesBefore) return [];
    expect(line).toMatchObject({ consistency: "application" });
    return [{ point: Number(line["point"]), frozen: true, due }];
  });

  // The tracker dies while the guest writes, and nobody thaws it if it was frozen.
  await moreFiles(3);
  isKilled = true;
  await tracker.child.kill();
  tracker = await track();
  // A freeze that was under way ends when the disk is there again.
  await asked;
  if (isFrozen) await ask("thaw", "thawed");
  const atKill = count("synced");
  expect(tracker.begun[0]).toMatchObject({ changes: "exact" });
  const first = await tracker.firstDone();
  expect(first).toMatchObject({ reason: "bitmap", consistency: "crash" });
  await guest.waitFor(() => count("synced") > atKill + 3 || count("trouble") > 0, "synced");
  for (let nth = 0; nth < pointsOfKind; nth++) {
    await moreFiles(1);
    const due = synced();
    const line = await tracker.nextDone(2);
    expect(line).toMatchObject({ reason: "bitmap", consistency: "crash" });
    taken.push({ point: Number(line["point"]), frozen: false, due });
  }
  await ask("end", "ended");
  expect(
    guest.lines.find(({ event }) => event === "ended"),
    guest.text,
  ).toMatchObject({ errors: 0 });
  expect(count("trouble"), guest.text).toBe(0);
  await guest.kill();
  expect(await tracker.child.stop()).toBe(0);
  expect(await receiver.stop()).toBe(0);

  const looked = [true, false].flatMap((kind) => taken.filter(({ frozen }) => frozen === kind).slice(-pointsOfKind));
  const restored = await restoreAll(t, dir, receiver, looked);
  for (const [nth, { frozen }] of looked.entries()) {
    // Nothing has to be replayed of what was frozen.
    if (frozen) expect(fsck(restored[nth] ?? "").clean).toBe(true);
  }
  for (const kind of [true, false]) {
    const last = looked.filter(({ frozen }) => frozen === kind).slice(-1);
    const files = await restoreAll(t, dir, receiver, last, "boot");
    const port = await freePort();
    const machine = new Guest(t, { system, kvm, port, files, kernelLog, words: ["boot"] });
    const booted = await machine.waitForEvent("booted");
    expect(booted, machine.text).toMatchObject({ replayed: kind ? 0 : 1, root: "1" });
    await machine.waitForEvent("written");
    await machine.exited;
    expect(machine.text).not.toMatch(/EXT4-fs error|"event":"trouble"/);
    expect(fsck(files[0] ?? "").clean).toBe(true);
  }
  const second = new Guest(t, { system, kvm, port: await freePort(), files: restored, kernelLog, words: ["look"] });
  await second.exited;
  expect(second.text).not.toMatch(/EXT4-fs error|"event":"trouble"/);
  const mounted = second.lines.filter(({ event }) => event === "mounted");
  expect(
    mounted.map(({ replayed }) => replayed),
    second.text,
  ).toEqual(looked.map(({ frozen }) => (frozen ? 0 : 1)));
  for (const [nth, { point, due }] of looked.entries()) {
    const { clean, output } = fsck(restored[nth] ?? "");
    expect(clean, `point ${String(point)}: ${output}`).toBe(true);
    expectFiles(join(dir, `files-${String(point)}`), restored[nth] ?? "", due);
  }
  const facts = looked.map(({ point, frozen, due }) => ({ point, frozen, files: due.length }));
  process.stdout.write(`${JSON.stringify({ cycles: first["point"], synced: count("synced"), facts })}\n`);
});

async function restoreAll(
  t: Scope,
  dir: string,
  { storeDir }: Receiver,
  points: readonly Taken[],
  name = "point",
): Promise<readonly string[]> {
  const paths: string[] = [];
  for (const { point } of points) {
    const path = join(dir, `${name}-${String(point)}.raw`);
    const { code, stderr } = await replicate(t, ["restore", "--store", storeDir, `vm@${String(point)}`, path]);
    expect(code, stderr).toBe(0);
    paths.push(path);
  }
  return paths;
}

/** All files that are due are in the file system, with what was written to them. */
function expectFiles(out: string, volume: string, due: readonly JsonLine[]): void {
  expect(due.length).toBeGreaterThan(0);
  mkdirSync(out);
  for (let folder = 0; folder < 8; folder++) runTool("debugfs", ["-R", `rdump /d${String(folder)} ${out}`, volume]);
  for (const { name, sha256 } of due) {
    const bytes = readFileSync(join(out, String(name)));
    expect(createHash("sha256").update(bytes).digest("hex"), String(name)).toBe(sha256);
  }
}
