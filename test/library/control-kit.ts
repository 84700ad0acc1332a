/** A tracker with its control socket, a client that sends what it cuts, and a receiver, in one process. */
import { join } from "node:path";
import { type Clock, systemClock } from "../../src/base/clock.ts";
import { Gate } from "../../src/base/gate.ts";
import { type ControlClient, connectControl, sendControlled } from "../../src/library/control/client.ts";
import { controlPathOf } from "../../src/library/control/protocol.ts";
import { type ControlListener, listenControl } from "../../src/library/control/server.ts";
import { openTracked, type Tracked } from "../../src/library/tracking.ts";
import type { Engine } from "../../src/replication/engine.ts";
import type { SendReport } from "../../src/replication/report.ts";
import { makeImage, type Scope } from "../e2e/kit.ts";
import { socketDir } from "../nbd/kit.ts";
import { PairKit } from "../replication/pair-kit.ts";
import { keepLog } from "../transport/kit.ts";

export interface ControlKitOptions {
  readonly sizeBytes: number;
  /** Of the journal. */
  readonly blockBytes?: number;
  /** Of the disk at the receiver, when it is new. */
  readonly receiverBlockBytes?: number;
  /** Of the control server. */
  readonly clock?: Clock;
  /** Default: the image is opened as a file. */
  readonly open?: (engine: Engine, path: string) => Promise<Tracked>;
}

export class ControlKit {
  readonly pair: PairKit;
  readonly tracked: Tracked;
  readonly turn: Gate;
  readonly log: ReturnType<typeof keepLog>;
  readonly #blockBytes: number | undefined;

  private constructor(kit: Pick<ControlKit, "pair" | "tracked" | "turn" | "log">, blockBytes: number | undefined) {
    ({ pair: this.pair, tracked: this.tracked, turn: this.turn, log: this.log } = kit);
    this.#blockBytes = blockBytes;
  }

  /** Ends with the scope. */
  static async create(scope: Scope, options: ControlKitOptions): Promise<ControlKit> {
    const { sizeBytes, blockBytes, clock = systemClock } = options;
    const { open = (engine, image) => openTracked(image, { engine, blockBytes }) } = options;
    const pair = await PairKit.create();
    const path = join(socketDir(scope), "vm.raw");
    makeImage(path, sizeBytes);
    const log = keepLog();
    const tracked = await open({ ...pair.sending, clock: systemClock, log }, path);
    const turn = new Gate(1);
    const listener: ControlListener = await listenControl({
      ...{ engine: { ...pair.sending, clock, log }, path: controlPathOf(path), turn },
      disks: [{ exportName: "vm.raw", tracked }],
    });
    scope.onTestFinished(async () => {
      await listener.close();
      await tracked.close();
      await pair.close();
    });
    return new ControlKit({ pair, tracked, turn, log }, options.receiverBlockBytes);
  }

  connect(): Promise<ControlClient> {
    return connectControl(controlPathOf(this.tracked.name), { clock: systemClock });
  }

  /** One cycle by a client of its own. `onCut`: when the cut is made, and nothing of it was read. */
  async send(onCut: () => Promise<void> = async () => undefined): Promise<SendReport> {
    const control = await this.connect();
    try {
      const [report] = await sendControlled({
        ...{ engine: { ...this.pair.sending, clock: systemClock }, control },
        createSend: ([disk]) => ({
          run: async () => {
            if (disk === undefined) throw new Error("a disk");
            await onCut();
            const { source } = disk;
            return [await this.pair.send(source.reader, { source, blockBytes: this.#blockBytes })];
          },
        }),
      });
      if (report === undefined) throw new Error("a report for each disk");
      await this.pair.idle();
      return report;
    } finally {
      control.close();
    }
  }

  /** What the image holds now. */
  async bytes(): Promise<Buffer> {
    const { image } = this.tracked;
    const bytes = Buffer.alloc(image.sizeBytes);
    await image.read(bytes, 0);
    return bytes;
  }
}
