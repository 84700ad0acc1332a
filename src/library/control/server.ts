/** The control socket of a tracker: other processes of this user ask it for cuts of its disks, and send them. */
import { invariant, ReplicationError, toReplicationError } from "../../base/errors.ts";
import type { Gate } from "../../base/gate.ts";
import type { BlockReader } from "../../image/block-device.ts";
import type { ServedContext } from "../../nbd/exported-disk.ts";
import { listenNbd, type NbdListener } from "../../nbd/server.ts";
import type { Engine } from "../../replication/engine.ts";
import { type CutHow, makeCuts } from "../../replication/cut.ts";
import type { DirtyBits } from "../../track/dirty-bitmap.ts";
import type { ImageCut } from "../../track/tracked-image.ts";
import type { ByteStream } from "../../transport/byte-stream.ts";
import { JsonLines } from "../../transport/json-lines.ts";
import { listenStreams } from "../../transport/stream-listen.ts";
import type { Tracked } from "../tracking.ts";
import {
  auditedContext,
  changedContext,
  type ControlAnswer,
  type ControlRequest,
  type CutOffer,
  parseRequest,
} from "./protocol.ts";

export interface ControlOptions extends CutHow {
  readonly engine: Engine;
  /** Of the unix socket; mode 0600. Cuts are served at `PATH.cut`. */
  readonly path: string;
  readonly disks: readonly { readonly exportName: string; readonly tracked: Tracked }[];
  /** One cut of these images at a time: shared with whoever else cuts them. */
  readonly turn: Gate;
}

export interface ControlListener {
  /** Ends what was asked for; a cut that was not retired came to nothing. */
  close(): Promise<void>;
}

/** Errors: `listen-failed`. */
export async function listenControl(options: ControlOptions): Promise<ControlListener> {
  const { storage, clock, random, log } = options.engine;
  const clients = new Set<Client>();
  const listener = await listenStreams({
    ...{ storage, clock, random, log },
    place: { kind: "unix", path: options.path },
    onStream: (stream) => {
      const client = new Client(options, stream);
      clients.add(client);
      void client.over.then(() => clients.delete(client));
    },
  });
  return {
    async close() {
      await listener.close();
      for (const client of clients) client.leave();
      await Promise.all([...clients].map(({ over }) => over));
    },
  };
}

/** A cut whose client asks nothing and reads nothing for so long is given up when somebody else waits for a turn. */
export const CUT_IDLE_MILLIS = 600_000;
/** Between two looks. */
const idleLookMillis = 60_000;

/** A cut that is being sent. */
interface Open {
  readonly cuts: readonly ImageCut[];
  readonly nbd: NbdListener;
  readonly stopLooking: () => void;
}

class Client {
  /** Resolves when nothing of it is left. */
  readonly over: Promise<void>;
  readonly #o: ControlOptions;
  readonly #lines: JsonLines;
  /** Never rejects. */
  #working: Promise<void> = Promise.resolve();
  #waiting = 0;
  #hasTurn = false;
  #open: Open | undefined;
  /** Why the last cut is open no longer; undefined: it is, or the client ended it. */
  #abandoned: ReplicationError | undefined;
  /** When the client last asked or read, by the monotonic clock. */
  #activeAt = 0;
  /** Aborted when the client has left: nobody waits for a turn any more. */
  readonly #leaving = new AbortController();

  constructor(options: ControlOptions, stream: ByteStream) {
    this.#o = options;
    let resolveOver = (): void => undefined;
    this.over = new Promise((resolve) => {
      resolveOver = resolve;
    });
    this.#lines = new JsonLines(stream, {
      onValue: (value) => this.#ask(parseRequest(value)),
      onEnd: () => {
        this.#leaving.abort(new ReplicationError("aborted", "nobody waits for the cut any more"));
        void this.#working.then(() => this.#end([])).then(resolveOver);
      },
    });
  }

  leave(): void {
    this.#lines.close();
  }

  #ask(request: ControlRequest): void {
    if (++this.#waiting > 1)
      throw new ReplicationError("protocol-violation", "the control socket: one question at a time");
    this.#working = this.#working.then(async () => {
      const answer = await this.#answer(request);
      this.#noteActive();
      this.#waiting--;
      this.#lines.send(answer);
    });
  }

  #noteActive(): void {
    this.#activeAt = this.#o.engine.clock.monotonic();
  }

  async #answer(request: ControlRequest): Promise<ControlAnswer> {
    try {
      switch (request.do) {
        case "cut":
          return { ok: await this.#cut(request.whole) };
        case "check":
          for (const { view } of this.#cuts) view.check();
          return { ok: true };
        case "retire":
          if (this.#abandoned !== undefined) throw this.#abandoned;
          await this.#end(request.cycles);
          return { ok: true };
      }
    } catch (thrown) {
      const { code, message } = toReplicationError(thrown);
      return { error: { code, message } };
    }
  }

  get #cuts(): readonly ImageCut[] {
    if (this.#open !== undefined) return this.#open.cuts;
    if (this.#abandoned !== undefined) throw this.#abandoned;
    throw new ReplicationError("protocol-violation", "the control socket: no cut is open");
  }

  async #cut(whole: readonly string[]): Promise<CutOffer> {
    await this.#end([]);
    this.#abandoned = undefined;
    await this.#o.turn.enter(this.#leaving.signal);
    this.#hasTurn = true;
    try {
      this.#leaving.signal.throwIfAborted();
      return await this.#makeCut(whole);
    } catch (error) {
      await this.#end([]);
      throw error;
    }
  }

  async #makeCut(wholeExports: readonly string[]): Promise<CutOffer> {
    const { engine, path, disks, quiescing, auditShare } = this.#o;
    const { storage, clock, random, log } = engine;
    const images = disks.map(({ tracked }) => tracked.image);
    // The base's block is the receiver's, whoever sent it.
    const grains = disks.map(({ tracked }) => tracked.states.geometry?.blockBytes);
    const whole = disks.map(({ exportName }) => wholeExports.includes(exportName));
    const how = { quiescing, auditShare, whole, grains };
    const { cuts, consistency } = await makeCuts(images, { ...how, clock, random, log });
    const socket = `${path}.cut`;
    try {
      for (const { durable } of cuts) await durable;
      const exports = cuts.map((cut, nth) => ({
        name: disks[nth]?.exportName ?? "",
        ...{ image: this.#noting(cut.view), writable: false },
        contexts: contextsOf(cut),
      }));
      const nbd = await listenNbd({
        ...{ storage, clock, random, log, exports },
        place: { kind: "unix", path: socket },
      });
      this.#opened({ cuts, nbd, stopLooking: clock.every(idleLookMillis, () => this.#lookIdle()) });
    } catch (error) {
      for (const cut of cuts) await cut.mergeBack();
      throw error;
    }
    const offered = cuts.map(({ cycle, bases, dirty, complete, grainBytes, audited }, nth) => {
      const disk = disks[nth];
      invariant(disk !== undefined, "a cut of each disk");
      const { name: image, identity, stateFile } = disk.tracked;
      return {
        name: disk.exportName,
        image,
        identity,
        stateFile,
        cycle,
        bases,
        complete,
        blockBytes: dirty.blockBytes,
        grainBytes,
        audited: audited !== undefined,
      };
    });
    return { consistency, socket, disks: offered };
  }

  /** The view, as long as somebody reads it. */
  #noting(view: BlockReader): BlockReader {
    const { sizeBytes, sectorBytes } = view;
    return {
      ...{ sizeBytes, sectorBytes },
      read: (target, offset) => {
        this.#noteActive();
        return view.read(target, offset);
      },
      extents: (offset, length) => {
        this.#noteActive();
        return view.extents(offset, length);
      },
      close: () => view.close(),
    };
  }

  #opened(open: Open): void {
    this.#open = open;
    this.#noteActive();
    for (const { view } of open.cuts) view.whenLost((error) => this.#giveUp(open, error));
  }

  #lookIdle(): void {
    const { engine, path, turn } = this.#o;
    if (this.#open === undefined || this.#waiting > 0 || turn.waiting === 0) return;
    if (engine.clock.monotonic() - this.#activeAt < CUT_IDLE_MILLIS) return;
    const text = `${path}: a client asked and read nothing for ${CUT_IDLE_MILLIS / 60_000} minutes while another waits: its cut is given up. What changed stays marked for the next one`;
    engine.log.warn({}, text);
    this.#giveUp(this.#open, new ReplicationError("cut-abandoned", text));
  }

  /** The cut comes to nothing, and its turn is another's; the client hears why when it asks. */
  #giveUp(open: Open, error: ReplicationError): void {
    this.#working = this.#working.then(async () => {
      if (this.#open !== open) return;
      this.#abandoned = error;
      await this.#end([]).catch((thrown: unknown) => {
        this.#o.engine.log.warn({ err: thrown }, `${this.#o.path}: a cut did not end as it should`);
      });
    });
  }

  /** Ends the cut: what a receiver has of it is clean, all else as dirty as it was. Idempotent. */
  async #end(cycles: readonly string[]): Promise<void> {
    const open = this.#open;
    this.#open = undefined;
    try {
      if (open === undefined) return;
      open.stopLooking();
      await open.nbd.close();
      for (const [nth, cut] of open.cuts.entries()) {
        const states = this.#o.disks[nth]?.tracked.states;
        if (cycles.includes(cut.cycle)) await cut.retire(async () => await states?.settle(cut.cycle));
      }
    } finally {
      for (const cut of open?.cuts ?? []) await cut.mergeBack();
      if (this.#hasTurn) this.#o.turn.leave();
      this.#hasTurn = false;
    }
  }
}

function contextsOf({ dirty, audited }: ImageCut): ServedContext[] {
  const changed = { name: changedContext, stretches: stretchesOf(dirty) };
  return audited === undefined ? [changed] : [changed, { name: auditedContext, stretches: stretchesOf(audited) }];
}

function stretchesOf(bits: DirtyBits): ServedContext["stretches"] {
  const { blockBytes } = bits;
  return async function* stretches(offset, length) {
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const run = bits.next(Math.floor(at / blockBytes));
      const first = run === undefined ? end : Math.min(end, Math.max(at, run.first * blockBytes));
      if (first > at) yield { length: first - at, flags: 0 };
      if (run === undefined || first === end) return;
      const last = Math.min(end, (run.first + run.count) * blockBytes);
      yield { length: last - first, flags: 1 };
      at = last;
    }
  };
}
