/** What a person sees of a send at a terminal, and a script of one with `--json`. */
import { expect, test } from "vitest";
import { GIB, MIB } from "../../src/base/units.ts";
import { showMachineProgress, showProgress } from "../../src/cli/progress.ts";
import type { CliIo } from "../../src/cli/verb.ts";
import { emptyFunnel } from "../../src/replication/report.ts";
import type { SendProgress } from "../../src/replication/sender.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";

/** A terminal, or what stands in its place, and what was written to it. */
function ioOf({ isTerminal = true, columns = 120 } = {}) {
  const written = { out: [] as string[], err: [] as string[] };
  const io: CliIo = {
    out: (text) => void written.out.push(text),
    err: (text) => void written.err.push(text),
    ...{ env: {}, cwd: "/", signal: new AbortController().signal, isTerminal, columns },
  };
  return { io, written };
}

/** A send that is where it is told to be. */
function senderAt(
  progress: Partial<SendProgress>,
  bytes: { size?: number; scanned?: number; changed?: number; wire?: number } = {},
) {
  const { size = GIB, scanned = 0, changed = 0, wire = 0 } = bytes;
  const funnel = { ...emptyFunnel(size), scannedBytes: scanned, changedBytes: changed, wireBytes: wire };
  const whole: SendProgress = { funnel, phase: "scanning", attempt: 1, peerPhase: "", ...progress };
  return { funnel, run: () => Promise.reject(new Error("it does not run")), progress: () => whole };
}

test("a terminal: the line is drawn over itself five times a second, with rate and time left, and is gone at the end", () => {
  const clock = createFakeClock();
  const { io, written } = ioOf();
  const sender = senderAt({}, { changed: 30 * MIB });
  const stop = showProgress(sender, io, { json: false, clock });
  expect(written.err).toEqual([]);
  for (let draw = 1; draw <= 10; draw++) {
    sender.funnel.scannedBytes = draw * 25.6 * MIB;
    sender.funnel.wireBytes = draw * MIB;
    clock.advance(200);
  }
  expect(written.err).toHaveLength(10);
  expect(written.err[0]).toBe(`\r${"2 % of 1.0 GiB, 30.0 MiB changed, 1.0 MiB sent, 5.0 MiB/s, 8 s left".padEnd(119)}`);
  expect(written.err[9]).toBe(
    `\r${"25 % of 1.0 GiB, 30.0 MiB changed, 10.0 MiB sent, 5.0 MiB/s, 6 s left".padEnd(119)}`,
  );
  stop();
  stop();
  expect(written.err.splice(10)).toEqual([`\r${" ".repeat(119)}\r`]);
  clock.advance(10_000);
  expect(written.err).toHaveLength(10);
  expect(written.out).toEqual([]);
  expect(clock.waiting).toBe(0);
});

test("each phase has its words", () => {
  const lineOf = (...of: Parameters<typeof senderAt>): string => {
    const clock = createFakeClock();
    const { io, written } = ioOf();
    const stop = showProgress(senderAt(...of), io, { json: false, clock });
    clock.advance(200);
    stop();
    return written.err[0]?.trim() ?? "";
  };
  expect(lineOf({ phase: "connecting" })).toBe("connecting");
  expect(lineOf({ phase: "connecting", peerPhase: "rebuild" })).toBe("the receiver is reading its replica");
  // What is left cannot be told before a hundredth is done.
  expect(lineOf({}, { scanned: 5 * MIB })).toBe("0 % of 1.0 GiB, 0 B changed, 0 B sent, 0 B/s, ? left");
  expect(lineOf({}, { size: 0 })).toBe("100 % of 0 B, 0 B changed, 0 B sent, 0 B/s, 0 s left");
  expect(lineOf({ phase: "waiting", attempt: 3 }, { scanned: GIB / 2 })).toBe(
    "connection lost at 50 %; trying again (attempt 3)",
  );
  expect(lineOf({ phase: "committing" }, { changed: 7 * MIB })).toBe("committing: the receiver syncs 7.0 MiB");
});

test("a narrow terminal: the line is cut, so that it never takes two", () => {
  const clock = createFakeClock();
  const { io, written } = ioOf({ columns: 20 });
  const stop = showProgress(senderAt({}, { scanned: GIB / 4 }), io, { json: false, clock });
  clock.advance(200);
  stop();
  expect(written.err).toEqual(["\r25 % of 1.0 GiB, 0 ", `\r${" ".repeat(19)}\r`]);
});

test("not a terminal: nothing at all; with --json a line each 2 s on standard output", () => {
  const clock = createFakeClock();
  const { io, written } = ioOf({ isTerminal: false });
  const sender = senderAt({ attempt: 2, peerPhase: "rebuild" }, { scanned: MIB, changed: 4096, wire: 5000 });
  const stops = [showProgress(sender, io, { json: false, clock })];
  clock.advance(60_000);
  expect(written).toEqual({ out: [], err: [] });
  stops.push(showProgress(sender, io, { json: true, clock }));
  clock.advance(4_500);
  for (const stop of stops) stop();
  const common = {
    event: "progress",
    phase: "scanning",
    attempt: 2,
    receiver: "rebuild",
    bytesSize: GIB,
    bytesScanned: MIB,
  };
  const line = { ...common, bytesChanged: 4096, bytesWire: 5000 };
  expect(written.out.map((text) => JSON.parse(text) as unknown)).toEqual([
    { ...line, seconds: 2 },
    { ...line, seconds: 4 },
  ]);
  expect(written.out.every((text) => text.endsWith("}\n"))).toBe(true);
  expect(written.err).toEqual([]);
});

test("several disks: their sum on a terminal, a line for each as JSON", () => {
  const clock = createFakeClock();
  const [system, data] = [senderAt({ phase: "waiting" }, { scanned: GIB }), senderAt({}, { scanned: GIB / 2 })];
  const machine = {
    run: () => Promise.reject(new Error("it does not run")),
    progress: () => [
      { disk: "vm.system", progress: system.progress() },
      { disk: "vm.data", progress: data.progress() },
    ],
  };
  const terminal = ioOf();
  const script = ioOf({ isTerminal: false });
  const stops = [
    showMachineProgress(machine, terminal.io, { json: false, clock }),
    showMachineProgress(machine, script.io, { json: true, clock }),
  ];
  clock.advance(2_000);
  for (const stop of stops) stop();
  expect(terminal.written.err).toHaveLength(11);
  expect(terminal.written.err[9]?.trim()).toBe("1 of 2 disks: 75 % of 2.0 GiB, 768 MiB/s, 1 s left");
  expect(script.written.out.map((text) => JSON.parse(text) as unknown)).toMatchObject([
    { disk: "vm.system", phase: "waiting", bytesScanned: GIB },
    { disk: "vm.data", phase: "scanning", bytesScanned: GIB / 2 },
  ]);
});
