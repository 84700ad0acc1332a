/** Sends the disks of a running tracker: asks it for a cut, reads that over NBD, and says what a receiver has of it. */
import type { Clock } from "../../base/clock.ts";
import { ReplicationError } from "../../base/errors.ts";
import type { NbdReader } from "../../nbd/client.ts";
import type { Engine } from "../../replication/engine.ts";
import type { SendReport } from "../../replication/report.ts";
import type { SendSource } from "../../replication/sender.ts";
import { WholeDisks } from "../../replication/whole-disks.ts";
import type { DirtyBits } from "../../track/dirty-bitmap.ts";
import { type KnownStates, openKnownStates } from "../../track/known-state.ts";
import { bitsOf } from "../bitmap-source.ts";
import { JsonLines } from "../../transport/json-lines.ts";
import { connectStream } from "../../transport/stream-connect.ts";
import {
  auditedContext,
  changedContext,
  type ControlRequest,
  type CutOffer,
  type OfferedDisk,
  parseAnswer,
} from "./protocol.ts";

/** A cut whose base the receiver does not have is made again, with more of the disks: {@link WholeDisks}. */
const attemptsMax = 3;

export interface ControlledSend {
  /** In the order of the disks. */
  run(signal?: AbortSignal): Promise<readonly SendReport[]>;
}

/** A disk as the tracker cut it. */
export interface ControlledDisk {
  /** By which it is exported. */
  readonly name: string;
  readonly source: SendSource;
}

export interface SendControlledOptions {
  readonly engine: Engine;
  readonly control: ControlClient;
  /** A send of these disks, all of one moment. May be called again, for a cut of whole disks. */
  readonly createSend: (
    disks: readonly ControlledDisk[],
    how: { readonly consistency: "crash" | "application" },
  ) => ControlledSend;
  readonly signal?: AbortSignal | undefined;
}

/**
 * One cycle of a tracker's disks. Errors: of the send, `cut-abandoned`, `connection-lost` when the tracker ends meanwhile; then what changed is part of the
 * next one.
 */
export async function sendControlled(options: SendControlledOptions): Promise<readonly SendReport[]> {
  const { control } = options;
  /** By the names of their exports. */
  const whole = new WholeDisks<string>();
  for (let attempt = 1; ; attempt++) {
    const offer = await control.cut(whole.disks);
    try {
      const needsAll = (name: string): void => {
        whole.add(name);
      };
      return await sendCut(offer, needsAll, options);
    } catch (error) {
      const isMismatch = error instanceof ReplicationError && error.code === "base-mismatch";
      if (!isMismatch || attempt === attemptsMax) throw error;
      // The receiver is not where it was left: what differs is found by comparing, which takes all of the disk.
      whole.missed(offer.disks.map(({ name }) => name));
    }
  }
}

async function sendCut(
  offer: CutOffer,
  needsAll: (exportName: string) => void,
  { engine, control, createSend, signal }: SendControlledOptions,
): Promise<readonly SendReport[]> {
  const readers: NbdReader[] = [];
  try {
    const disks: ControlledDisk[] = [];
    const states: KnownStates[] = [];
    for (const disk of offer.disks) {
      const reader = await openExport(offer.socket, disk, engine);
      readers.push(reader);
      const known = await openKnownStates(engine.storage, disk.stateFile, {
        sync: true,
        onFailure: (words) => engine.log.warn({ image: disk.image }, words),
      });
      states.push(known);
      disks.push({ name: disk.name, source: await sourceOf(disk, { reader, control, states: known, needsAll }) });
    }
    const reports = await createSend(disks, { consistency: offer.consistency }).run(signal);
    for (const [nth, { audit }] of reports.entries()) {
      // The tracker finds nothing known when the cycle is retired: the next cut is compared as a whole.
      if ((audit?.missedBytes ?? 0) > 0) await states[nth]?.forget();
    }
    // Where nothing had changed and no point was made the receiver stays where it is, and so does the journal.
    const cycles = offer.disks.filter((_disk, nth) => reports[nth]?.created === true).map(({ cycle }) => cycle);
    await control.retire(cycles);
    return reports;
  } finally {
    for (const reader of readers) await reader.close();
  }
}

async function openExport(socket: string, { name, audited }: OfferedDisk, { clock, log }: Engine): Promise<NbdReader> {
  const { openNbdReader } = await import("../../nbd/client.ts");
  const contexts = audited ? [changedContext, auditedContext] : [changedContext];
  const address = { tls: false, place: { kind: "unix", path: socket }, exportName: name } as const;
  return await openNbdReader({ address, contexts, clock, log });
}

async function sourceOf(
  { name, image, identity, cycle, bases, complete, blockBytes, grainBytes, audited }: OfferedDisk,
  {
    reader,
    control,
    states,
    needsAll,
  }: {
    readonly reader: NbdReader;
    readonly control: ControlClient;
    readonly states: KnownStates;
    readonly needsAll: (exportName: string) => void;
  },
): Promise<SendSource> {
  const check = (): Promise<void> => control.check();
  return {
    ...{ reader, name: image, identity, guard: { begin: check, check } },
    changes: {
      ...{ cycle, bases, isExact: true, complete, grainBytes, states: states.known },
      dirty: await contextBits(reader, changedContext, blockBytes),
      audited: audited ? await contextBits(reader, auditedContext, blockBytes) : undefined,
      keep: (state) => states.keep(state),
      missed: () => states.forget(),
      needsAll: () => {
        needsAll(name);
      },
    },
  };
}

function contextBits(reader: NbdReader, context: string, blockBytes: number): Promise<DirtyBits> {
  const { sizeBytes } = reader;
  return bitsOf({ sizeBytes, blockBytes }, reader.dirtyExtents(context, 0, sizeBytes));
}

/** A connection to a tracker's control socket. One question at a time. */
export interface ControlClient {
  /** Waits until the tracker is not sending itself. The cut before comes to nothing. */
  cut(whole: readonly string[]): Promise<CutOffer>;
  /** Throws when what was read of the cut is not all as it was. */
  check(): Promise<void>;
  /** A receiver has these cycles of the cut, durably. */
  retire(cycles: readonly string[]): Promise<void>;
  /** What was not retired comes to nothing. */
  close(): void;
}

/** Errors: `connect-failed`, with the system's error as its cause. */
export async function connectControl(
  path: string,
  {
    clock,
    signal = new AbortController().signal,
  }: { readonly clock: Clock; readonly signal?: AbortSignal | undefined },
): Promise<ControlClient> {
  const stream = await connectStream({ kind: "unix", path }, { clock, signal });
  let waiting: { resolve(value: CutOffer | true): void; reject(error: unknown): void } | undefined;
  let over: ReplicationError | undefined;
  const lines = new JsonLines(stream, {
    onValue(value) {
      const asked = waiting;
      waiting = undefined;
      try {
        asked?.resolve(parseAnswer(value));
      } catch (error) {
        asked?.reject(error);
      }
    },
    onEnd(error) {
      over = error ?? new ReplicationError("connection-lost", `${path}: the tracker has ended, or gave up the cut`);
      waiting?.reject(over);
    },
  });
  const ask = (request: ControlRequest): Promise<CutOffer | true> =>
    new Promise((resolve, reject) => {
      if (over !== undefined) {
        reject(over);
        return;
      }
      waiting = { resolve, reject };
      lines.send(request);
    });
  // Checks of several disks come at one moment.
  let turn: Promise<unknown> = Promise.resolve();
  const inTurn = (request: ControlRequest): Promise<CutOffer | true> => {
    const answer = turn.then(() => ask(request));
    turn = answer.catch(() => undefined);
    return answer;
  };
  return {
    async cut(whole) {
      const offer = await inTurn({ do: "cut", whole });
      if (offer === true) throw new ReplicationError("message-malformed", `${path}: no cut in the answer`);
      return offer;
    },
    async check() {
      await inTurn({ do: "check" });
    },
    async retire(cycles) {
      await inTurn({ do: "retire", cycles });
    },
    close: () => lines.close(),
  };
}
