/** Reads a seed: finds it in its folder, looks at every part before anything is done with it, and gives its frames in order. */
import { createHash, type Hash } from "node:crypto";
import { basename, join } from "node:path";
import { invariant, ReplicationError } from "../../base/errors.ts";
import { limits } from "../../base/limits.ts";
import { BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, type Geometry, isBlockSize, MIB } from "../../base/units.ts";
import { decodeState, readSmallFile, type StateContent } from "../../replica/state-file.ts";
import type { Storage, StorageFile } from "../../storage/seam.ts";
import { createFrameDecoder, type FrameDecoder } from "../../wire/frame.ts";
import { protocolVersion, protocolVersionMin } from "../../wire/handshake.ts";
import type { Commit, Data, Message, Open, Zero } from "../../wire/messages.ts";
import { checkPrelude, headerBytesOf, payloadBytesOf, preludeBytes } from "../../wire/prelude.ts";
import {
  decodePartHeader,
  decodePartTrailer,
  noHash,
  type PartHeader,
  type PartTrailer,
  parseSeedFile,
  partHeaderBytes,
  partName,
  partTrailerBytes,
  seedDamaged,
  seedFormat,
} from "./format.ts";

/** What a manifest says. */
export interface SeedFacts extends Geometry {
  readonly disk: string;
  /** Uuid of the run, and cycle of the point the seed becomes. */
  readonly run: string;
  /** Hex: root of the disk's digest table. */
  readonly root: string;
  /** Milliseconds since 1970 UTC. */
  readonly time: number;
  readonly label: string | undefined;
  readonly consistency: "crash" | "application" | "none";
  readonly sourceName: string;
  /** Those the payloads may be compressed with. */
  readonly codecs: readonly string[];
  readonly parts: number;
  readonly frames: number;
  /** Of all parts. */
  readonly bytes: number;
  /** Hex: of the last part, as its trailer says; through the chain it stands for all. */
  readonly sha256: string;
}

export interface Seed extends SeedFacts {
  readonly directory: string;
  readonly manifest: string;
  /** Of the frames. */
  readonly protocol: number;
}

const codecForm = /^(?:stored|lz4|deflate|zstd)$/;

/**
 * The one complete copy in a folder. Every part is there, of this run, whole at its ends and as long as it was written; its content is checked as it is read.
 * Throws `seed-not-found`, `seed-damaged`, `version-unsupported`.
 */
export async function openSeed(storage: Storage, directory: string): Promise<Seed> {
  const manifest = await findManifest(storage, directory);
  const facts = await readSeedFacts(storage, manifest);
  const named = parseSeedFile(basename(manifest));
  if (named?.disk !== facts.disk || named.run !== facts.run)
    throw seedDamaged(manifest, "it is not the manifest its name says");
  let bytes = 0;
  let protocol = protocolVersion;
  for (let part = 1; part <= facts.parts; part++) {
    const { header, trailer } = await lookAtPart(storage, { ...facts, directory }, part);
    bytes += trailer.bodyBytes + partTrailerBytes;
    protocol = header.protocol;
  }
  if (bytes !== facts.bytes) throw seedDamaged(manifest, `its parts have ${bytes} bytes, not ${facts.bytes}`);
  return { ...facts, directory, manifest, protocol };
}

async function findManifest(storage: Storage, directory: string): Promise<string> {
  const missing = (why: string): ReplicationError => new ReplicationError("seed-not-found", `${directory} ${why}`);
  let names: readonly string[] | undefined;
  try {
    names = await storage.list(directory);
  } catch (error) {
    throw new ReplicationError("seed-not-found", `${directory} cannot be read (${String(error)})`, { cause: error });
  }
  if (names === undefined) throw missing("does not exist; check the path");
  const files = names.flatMap((name) => {
    const parsed = parseSeedFile(name);
    return parsed === undefined ? [] : [{ name, ...parsed }];
  });
  const manifests = files.filter(({ kind }) => kind === "manifest");
  const [first] = manifests;
  if (first === undefined) {
    throw missing(
      files.length === 0
        ? "holds no copy of a disk: send --to-dir makes one"
        : `holds a copy of disk ${files[0]?.disk ?? ""} that is not complete (its .seed.json is missing): run send --to-dir again`,
    );
  }
  if (manifests.length > 1) {
    const list = manifests.map(({ name }) => name).join(", ");
    throw missing(
      `holds ${manifests.length} copies (${list}): put the one to take, with its .frames, into a folder of its own`,
    );
  }
  return join(directory, first.name);
}

/** Throws `seed-damaged`, `version-unsupported`. */
export async function readSeedFacts(storage: Storage, path: string): Promise<SeedFacts> {
  return parseManifest(path, await readManifest(storage, path));
}

async function readManifest(storage: Storage, path: string): Promise<StateContent> {
  try {
    const bytes = await readSmallFile(storage, path, limits.stateFileBytesMax + 1);
    if (bytes === undefined) throw new ReplicationError("seed-not-found", `${path} vanished`);
    return decodeState(path, seedFormat, bytes);
  } catch (error) {
    throw inManifest(path, error);
  }
}

/** State files speak of a store; this one lies in none. */
function inManifest(path: string, error: unknown): unknown {
  if (!(error instanceof ReplicationError)) return error;
  if (error.code === "store-damaged") return seedDamaged(path, "it is not what was written", error);
  if (error.code !== "store-version-unsupported") return error;
  return new ReplicationError("version-unsupported", error.message, { cause: error, details: error.details });
}

function parseManifest(path: string, content: StateContent): SeedFacts {
  try {
    const codecs = content.text("codecs").split(" ");
    const facts: SeedFacts = {
      disk: content.text("disk"),
      run: content.text("run"),
      sizeBytes: content.integer("sizeBytes", 0, limits.diskBytesMax),
      blockBytes: content.integer("blockBytes", BLOCK_BYTES_MIN, BLOCK_BYTES_MAX),
      digestKind: content.oneOf("digestKind", ["xxh64", "sha256"]),
      root: content.hex("root", 32),
      time: content.integer("time"),
      label: content.optionalText("label"),
      consistency: content.oneOf("consistency", ["crash", "application", "none"]),
      sourceName: content.text("sourceName"),
      codecs,
      parts: content.integer("parts", 1, 999_999_999),
      frames: content.integer("frames", 2),
      bytes: content.integer("bytes"),
      sha256: content.hex("sha256", 32),
    };
    if (!isBlockSize(facts.blockBytes)) throw seedDamaged(path, '"blockBytes" is not a power of two');
    if (!codecs.every((codec) => codecForm.test(codec))) throw seedDamaged(path, '"codecs" names none that is known');
    return facts;
  } catch (error) {
    throw inManifest(path, error);
  }
}

/** Header and trailer of a part, if it is what its name says. Throws `seed-damaged`, `version-unsupported`. */
export async function lookAtPart(
  storage: Storage,
  seed: Pick<Seed, "disk" | "run" | "directory">,
  part: number,
): Promise<{ readonly header: PartHeader; readonly trailer: PartTrailer }> {
  const path = join(seed.directory, partName(seed.disk, seed.run, part));
  const file = await openPart(storage, path);
  try {
    const { sizeBytes } = await inPart(path, () => file.stat());
    const head = await readAt(file, 0, partHeaderBytes);
    const header = decodePartHeader(path, head);
    if (header.run !== seed.run) throw seedDamaged(path, `it belongs to another copy, of run ${header.run}`);
    if (header.part !== part) throw seedDamaged(path, `it is part ${header.part}, not part ${part}`);
    if (header.protocol < protocolVersionMin || header.protocol > protocolVersion) {
      throw new ReplicationError(
        "version-unsupported",
        `${path} holds frames of protocol version ${header.protocol}; this program reads ${protocolVersionMin} to ${protocolVersion}`,
        { details: { version: header.protocol } },
      );
    }
    const tail = await readAt(file, Math.max(0, sizeBytes - partTrailerBytes), Math.min(partTrailerBytes, sizeBytes));
    const trailer = decodePartTrailer(path, tail, sizeBytes);
    if (trailer.part !== part)
      throw seedDamaged(path, `its closing record is of part ${trailer.part}, not of part ${part}`);
    return { header, trailer };
  } finally {
    await file.close();
  }
}

async function openPart(storage: Storage, path: string): Promise<StorageFile> {
  if ((await inPart(path, () => storage.stat(path))) === undefined) {
    throw new ReplicationError(
      "seed-damaged",
      `${path} is missing. Nothing was committed; copy it from where it is, or make the copy again with send --to-dir`,
      { details: { file: path } },
    );
  }
  return await inPart(path, () => storage.open(path));
}

async function readAt(file: StorageFile, offset: number, count: number): Promise<Uint8Array> {
  const target = Buffer.alloc(count);
  return target.subarray(0, await inPart(file.path, () => file.read(target, offset)));
}

async function inPart<T>(path: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    if (error instanceof ReplicationError) throw error;
    throw seedDamaged(path, `it cannot be read (${error instanceof Error ? error.message : String(error)})`, error);
  }
}

/** A frame as it lies in a part. The arrays are valid until the next call of {@link SeedReader.next}. */
export interface SeedFrame<M extends Message = Message> {
  readonly message: M;
  readonly frameView: Uint8Array;
  readonly payloadView: Uint8Array;
}

interface OpenPart {
  readonly file: StorageFile;
  readonly hash: Hash;
  readonly header: PartHeader;
  readonly trailer: PartTrailer;
  /** Where the next read from the file begins. */
  at: number;
  frames: number;
}

/** The longest frame and as much again, so that a read is long. */
const windowBytes = 4 * MIB;
const empty = new Uint8Array(0);

export class SeedReader {
  readonly seed: Seed;
  readonly #storage: Storage;
  readonly #window = Buffer.allocUnsafeSlow(windowBytes);
  readonly #decoder: FrameDecoder;
  /** Bytes of the window read and not given out. */
  #start = 0;
  #end = 0;
  #part: OpenPart | undefined;
  #parts = 0;
  #previous = noHash;
  #frames = 0;
  #doneBytes = 0;
  #payload: Uint8Array = empty;
  #decoded: Message | undefined;

  constructor(storage: Storage, seed: Seed) {
    this.seed = seed;
    this.#storage = storage;
    this.#decoder = createFrameDecoder({
      payloadTarget: () => this.#payload,
      onFrame: ({ message }) => {
        this.#decoded = message;
      },
    });
  }

  /** Bytes of the parts passed so far, of `seed.bytes`. */
  get doneBytes(): number {
    return this.#doneBytes;
  }

  /** The first frame. */
  async open(): Promise<Open> {
    const frame = await this.next();
    const { seed } = this;
    const message = frame?.message;
    if (
      message?.type !== "open" ||
      message.disk !== seed.disk ||
      message.cycle !== seed.run ||
      message.sizeBytes !== seed.sizeBytes ||
      message.blockBytes !== seed.blockBytes ||
      message.digestKind !== seed.digestKind
    ) {
      throw seedDamaged(this.#path, "it does not begin as its manifest says");
    }
    return message;
  }

  /** The next of the frames behind it; the last one is the commit, and when it is given out every part has been found to be what was written. */
  async content(): Promise<SeedFrame<Data> | SeedFrame<Zero> | SeedFrame<Commit>> {
    const frame = await this.next();
    const path = this.#path;
    const message = frame?.message;
    switch (message?.type) {
      case "data":
      case "zero":
        if (message.repeat) throw seedDamaged(path, "it repeats a block");
        return { ...frame, message } as SeedFrame<Data> | SeedFrame<Zero>;
      case "commit": {
        const { seed } = this;
        if (message.cycle !== seed.run || Buffer.from(message.root).toString("hex") !== seed.root) {
          throw seedDamaged(path, "it ends in another state of the disk than its manifest says");
        }
        // The frame moves in the window when more is read, which there must not be.
        if ((await this.next()) !== undefined) throw seedDamaged(path, "something follows the commit");
        const counted = message.frames.reduce((sum, count) => sum + count, 2);
        if (this.#frames !== seed.frames || counted !== seed.frames) {
          throw seedDamaged(path, `the copy has ${this.#frames} frames, not ${counted}`);
        }
        return { message, frameView: empty, payloadView: empty };
      }
      default:
        throw seedDamaged(
          path,
          message === undefined ? "it ends without a commit" : `${message.type} has no place in it`,
        );
    }
  }

  /** Undefined after the last frame. Throws `seed-damaged`. */
  async next(): Promise<SeedFrame | undefined> {
    for (;;) {
      const part = this.#part ?? (await this.#beginPart());
      if (part === undefined) return undefined;
      if (this.#start < this.#end || part.at < part.trailer.bodyBytes) return await this.#frame(part);
      await this.#endPart(part);
    }
  }

  /** Reads the part under way to its end, for its checksum alone: tells a copy that is damaged from another fault. Throws `seed-damaged`. */
  async verifyRest(): Promise<void> {
    const part = this.#part;
    if (part === undefined) return;
    this.#start = 0;
    this.#end = 0;
    while (part.at < part.trailer.bodyBytes) {
      await this.#read(part);
      this.#end = 0;
    }
    this.#checkHash(part);
  }

  async close(): Promise<void> {
    await this.#part?.file.close();
    this.#part = undefined;
  }

  get #path(): string {
    return join(this.seed.directory, partName(this.seed.disk, this.seed.run, this.#parts));
  }

  async #beginPart(): Promise<OpenPart | undefined> {
    if (this.#parts === this.seed.parts) return undefined;
    this.#parts++;
    const { header, trailer } = await lookAtPart(this.#storage, this.seed, this.#parts);
    if (Buffer.compare(header.previous, this.#previous) !== 0) {
      throw seedDamaged(this.#path, `it does not follow part ${this.#parts - 1} of this copy`);
    }
    const file = await openPart(this.#storage, this.#path);
    const hash = createHash("sha256");
    const part: OpenPart = { file, hash, header, trailer, at: 0, frames: 0 };
    this.#part = part;
    hash.update(await readAt(file, 0, partHeaderBytes));
    part.at = partHeaderBytes;
    this.#doneBytes += partHeaderBytes;
    return part;
  }

  async #endPart(part: OpenPart): Promise<void> {
    this.#checkHash(part);
    if (part.frames !== part.trailer.frames) {
      throw seedDamaged(part.file.path, `it has ${part.frames} frames, not ${part.trailer.frames}`);
    }
    this.#storage.lanes.dropCache(part.file.fd, 0, part.trailer.bodyBytes);
    await part.file.close();
    this.#part = undefined;
    this.#previous = part.trailer.sha256;
    this.#doneBytes += partTrailerBytes;
    if (this.#parts < this.seed.parts || Buffer.from(this.#previous).toString("hex") === this.seed.sha256) return;
    throw seedDamaged(this.seed.manifest, "its last part is another one than it names");
  }

  #checkHash({ hash, file, trailer }: OpenPart): void {
    // Of a copy: the hash goes on where this only looks.
    if (Buffer.compare(hash.copy().digest(), trailer.sha256) === 0) return;
    throw seedDamaged(file.path, "its content does not match its sha256");
  }

  async #frame(part: OpenPart): Promise<SeedFrame> {
    const offset = part.at - (this.#end - this.#start);
    try {
      await this.#need(part, preludeBytes);
      const prelude = new DataView(this.#window.buffer, this.#start, preludeBytes);
      checkPrelude(prelude);
      const headBytes = preludeBytes + headerBytesOf(prelude);
      const frameBytes = headBytes + payloadBytesOf(prelude);
      await this.#need(part, frameBytes);
      const frameView = this.#window.subarray(this.#start, this.#start + frameBytes);
      this.#payload = frameView.subarray(headBytes);
      this.#decoder.push(frameView.subarray(0, headBytes));
      // The payload is where it has to be.
      if (frameBytes > headBytes) this.#decoder.filled(frameBytes - headBytes);
      const message = this.#decoded;
      invariant(message !== undefined, "a whole frame is decoded at once");
      this.#decoded = undefined;
      this.#start += frameBytes;
      part.frames++;
      this.#frames++;
      return { message, frameView, payloadView: this.#payload };
    } catch (error) {
      if (!(error instanceof ReplicationError) || error.code === "seed-damaged") throw error;
      const why = error.message.replace("the peer sent a malformed frame: ", "");
      throw seedDamaged(part.file.path, `at offset ${offset} there is no frame (${why})`, error);
    }
  }

  /** Puts at least so many bytes into the window. */
  async #need(part: OpenPart, bytes: number): Promise<void> {
    while (this.#end - this.#start < bytes) {
      if (part.at === part.trailer.bodyBytes) throw seedDamaged(part.file.path, "it ends in the middle of a frame");
      if (this.#start > 0) {
        this.#window.copyWithin(0, this.#start, this.#end);
        this.#end -= this.#start;
        this.#start = 0;
      }
      await this.#read(part);
    }
  }

  async #read(part: OpenPart): Promise<void> {
    const room = Math.min(this.#window.length - this.#end, part.trailer.bodyBytes - part.at);
    const target = this.#window.subarray(this.#end, this.#end + room);
    const count = await inPart(part.file.path, () => part.file.read(target, part.at));
    if (count < room) throw seedDamaged(part.file.path, `it ends at ${part.at + count} bytes while it is read`);
    part.hash.update(target);
    part.at += count;
    this.#end += count;
    this.#doneBytes += count;
  }
}
