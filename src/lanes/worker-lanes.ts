/** The worker driver: one thread a lane, two jobs at a time in each so that none waits for the main thread. */
import { Worker } from "node:worker_threads";
import { InvariantError, invariant, ReplicationError } from "../base/errors.ts";
import type { SharedMemory } from "../base/shared-memory.ts";
import type { JobName } from "./jobs.ts";
import type { CodecSet } from "../codec/compression.ts";
import { type CarriedError, uncarryError } from "./carried-error.ts";
import type { Lanes } from "./lanes.ts";
import { laneRoomBytes } from "./slot-layout.ts";

type Lz4 = CodecSet["lz4"];

/** What a worker is started with. */
export interface LaneSetup {
  readonly memory: SharedMemory;
  readonly roomAt: number;
  readonly lz4: Lz4 | undefined;
}

export interface LaneCall {
  readonly id: number;
  readonly name: JobName;
  readonly request: unknown;
}

export type LaneAnswer =
  | { readonly ready: true; readonly lz4: Lz4 }
  | { readonly id: number; readonly result: unknown }
  | { readonly id: number; readonly error: CarriedError };

interface Pending {
  readonly call: LaneCall;
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: unknown) => void;
}

interface Thread {
  readonly worker: Worker;
  readonly pending: Map<number, Pending>;
  /** Its codecs are loaded, and it has not died. */
  ready: boolean;
}

const jobsPerThread = 2;

/** Threads that die one after the other before any is ready: the next one would, too, and there are no lanes from then on. */
export const failedStartsMax = 3;

/**
 * Starts `count` threads. Jobs may be given at once: they wait until a thread is ready. One that dies fails its jobs and those that wait with
 * `lane-crashed`, and another is started in its place; when {@link failedStartsMax} have died before they were ready, every later job
 * fails.
 */
export function createWorkerLanes(options: {
  readonly count: number;
  readonly memory: SharedMemory;
  /** Where in `memory` `count` times {@link laneRoomBytes} lie that nobody else uses. */
  readonly roomAt: number;
  /** `wasm`: that one, whatever else is there. */
  readonly lz4?: Lz4 | undefined;
  /** Called when the first lane has its codecs: which lz4 it uses. Must not throw. */
  readonly onReady?: ((lz4: Lz4) => void) | undefined;
  /** The compiled worker-main; default: beside this file. */
  readonly entry?: URL;
}): Lanes {
  invariant(options.count >= 1, "there is at least one lane");
  const { memory, roomAt, lz4 } = options;
  const entry = options.entry ?? new URL("./worker-main.js", import.meta.url);
  return new WorkerLanes(entry, { memory, roomAt, lz4 }, options.count, options.onReady);
}

class WorkerLanes implements Lanes {
  readonly #entry: URL;
  readonly #setup: LaneSetup;
  /** Thread i has the i-th room. */
  readonly #threads: Thread[] = [];
  readonly #waiting: Pending[] = [];
  /** Since the last one that became ready. */
  #failedStarts = 0;
  /** No thread is started any more. */
  #failure: ReplicationError | undefined;
  #nextId = 1;
  #closing = false;
  #idle: (() => void) | undefined;
  #closed: Promise<void> | undefined;
  #onReady: ((lz4: Lz4) => void) | undefined;
  readonly count: number;

  constructor(entry: URL, setup: LaneSetup, count: number, onReady?: (lz4: Lz4) => void) {
    this.count = count;
    this.#entry = entry;
    this.#setup = setup;
    this.#onReady = onReady;
    for (let index = 0; index < count; index++) this.#start(index);
  }

  #start(index: number): void {
    const roomAt = this.#setup.roomAt + index * laneRoomBytes;
    const worker = new Worker(this.#entry, { workerData: { ...this.#setup, roomAt }, name: "lane" });
    const thread: Thread = { worker, pending: new Map(), ready: false };
    this.#threads[index] = thread;
    let death: ReplicationError | undefined;
    worker.on("message", (answer: LaneAnswer) => {
      // Said before it died, and overtaken by the news of that.
      if (death !== undefined) return;
      if ("ready" in answer) {
        thread.ready = true;
        this.#failedStarts = 0;
        this.#onReady?.(answer.lz4);
        this.#onReady = undefined;
        // A program that is done need not close its lanes to end: what is under way keeps it alive by its sockets and files. A lane that
        // becomes ready while it is being ended stays referenced: see `#end`.
        if (!this.#closing) worker.unref();
        this.#dispatch();
      } else this.#settle(thread, answer);
    });
    const died = (cause: unknown): ReplicationError => {
      if (death !== undefined) return death;
      death = new ReplicationError("lane-crashed", "a worker thread ended unexpectedly", { cause });
      if (!thread.ready) this.#failedStarts++;
      this.#fail(thread, death);
      return death;
    };
    worker.on("error", died);
    worker.on("exit", (status) => {
      // Not before: until it has ended it may work in its room.
      if (!this.#closing) this.#replace(index, died(new Error(`exit status ${status}`)));
    });
  }

  #replace(index: number, death: ReplicationError): void {
    if (this.#failure !== undefined) return;
    if (this.#failedStarts >= failedStartsMax) this.#giveUp(death);
    else {
      try {
        this.#start(index);
      } catch (thrown) {
        // No thread can be had of the system.
        this.#giveUp(new ReplicationError("lane-crashed", "a worker thread could not be started", { cause: thrown }));
      }
    }
  }

  #giveUp(error: ReplicationError): void {
    this.#failure = error;
    this.#rejectAll(this.#waiting.splice(0), error);
  }

  run(name: JobName, request: unknown): Promise<never> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (this.#closed !== undefined) return Promise.reject(new InvariantError("lanes are open"));
    return new Promise((resolve, reject) => {
      this.#waiting.push({
        call: { id: this.#nextId++, name, request },
        resolve: resolve as (result: unknown) => void,
        reject,
      });
      this.#dispatch();
    });
  }

  #dispatch(): void {
    while (this.#waiting.length > 0) {
      let best: Thread | undefined;
      for (const thread of this.#threads) {
        if (thread.ready && thread.pending.size < (best?.pending.size ?? jobsPerThread)) best = thread;
      }
      if (best === undefined) return;
      const next = this.#waiting.shift();
      if (next === undefined) return;
      if (best.pending.size === 0) best.worker.ref();
      best.pending.set(next.call.id, next);
      best.worker.postMessage(next.call);
    }
  }

  #settle(thread: Thread, answer: Exclude<LaneAnswer, { ready: unknown }>): void {
    const pending = thread.pending.get(answer.id);
    if (pending === undefined) return;
    thread.pending.delete(answer.id);
    if (thread.pending.size === 0) thread.worker.unref();
    if ("error" in answer) pending.reject(uncarryError(answer.error));
    else pending.resolve(answer.result);
    this.#dispatch();
    if (this.#busy === 0) this.#idle?.();
  }

  get #busy(): number {
    return this.#waiting.length + this.#threads.reduce((sum, thread) => sum + thread.pending.size, 0);
  }

  /** Jobs of other threads go on: they still write to the slots and files of their requests. */
  #fail(thread: Thread, error: ReplicationError): void {
    thread.ready = false;
    const lost = [...thread.pending.values(), ...this.#waiting.splice(0)];
    thread.pending.clear();
    this.#rejectAll(lost, error);
  }

  #rejectAll(lost: readonly Pending[], error: ReplicationError): void {
    for (const pending of lost) pending.reject(error);
    if (this.#busy === 0) this.#idle?.();
  }

  close(): Promise<void> {
    this.#closed ??= this.#end();
    return this.#closed;
  }

  async #end(): Promise<void> {
    if (this.#busy > 0) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    }
    this.#closing = true;
    await Promise.all(
      this.#threads.map(({ worker }) => {
        // An idle lane does not keep the process alive, its end must: whoever waits for it would never hear of it.
        worker.ref();
        return worker.terminate();
      }),
    );
  }
}
