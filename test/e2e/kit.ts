/** What end-to-end tests share: the built command in real processes, images, tools of the system. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { accessSync, constants, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { closeSync, fsyncSync, ftruncateSync, readSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { afterAll } from "vitest";

export const root = join(import.meta.dirname, "../..");
export const cliPath = join(root, "dist/cli/main.js");

/** One line of `--json` output. */
export type JsonLine = Readonly<Record<string, unknown>> & { readonly event?: string };

/** Where clean-up is registered: a test's context, or {@link suiteScope}. */
export interface Scope {
  onTestFinished(task: () => void | Promise<void>): void;
}

/** A scope that ends with the file or `describe` it is made in, for what `beforeAll` makes. */
export function suiteScope(): Scope {
  const tasks: (() => void | Promise<void>)[] = [];
  afterAll(async () => {
    for (const task of tasks.reverse()) await task();
  });
  return { onTestFinished: (task) => void tasks.push(task) };
}

/** A folder of its own, removed with the scope. */
export function tempDir(scope: Scope, name = "replicate-e2e-"): string {
  const path = mkdtempSync(join(tmpdir(), name));
  scope.onTestFinished(() => {
    rmSync(path, { recursive: true, force: true });
  });
  return path;
}

// Tools -------------------------------------------------------------------------------------------------------------

/** System tools live in sbin folders too, which the path of an ordinary user leaves out. */
const toolPath = [process.env["PATH"] ?? "", "/usr/local/sbin", "/usr/sbin", "/sbin"].join(delimiter);

/** True when the tool is installed. For `test.skipIf(!hasTool("mke2fs"))`, and {@link needTools} to say why. */
export function hasTool(name: string): boolean {
  return toolPath.split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, name), constants.X_OK);
      return true;
    } catch {
      // Not in this folder; the next one is tried.
      return false;
    }
  });
}

/** Skips the test, saying which tool is missing. */
export function needTools(context: { skip(note: string): never }, ...names: readonly string[]): void {
  const missing = names.filter((name) => !hasTool(name));
  if (missing.length > 0) context.skip(`not installed: ${missing.join(", ")}`);
}

export interface ToolResult {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a tool of the system to its end. Throws when it cannot be started. */
export function runTool(
  name: string,
  args: readonly string[],
  options: { readonly cwd?: string; readonly input?: string; readonly env?: NodeJS.ProcessEnv } = {},
): ToolResult {
  const run = spawnSync(name, args, {
    ...options,
    encoding: "utf8",
    maxBuffer: 64 << 20,
    env: { ...process.env, ...options.env, PATH: toolPath, LC_ALL: "C" },
  });
  if (run.error !== undefined) throw run.error;
  return { code: run.status, stdout: run.stdout, stderr: run.stderr };
}

function mustRun(name: string, args: readonly string[], options: Parameters<typeof runTool>[2] = {}): ToolResult {
  const result = runTool(name, args, options);
  if (result.code !== 0) throw new Error(`${name} ${args.join(" ")} gave ${String(result.code)}: ${result.stderr}`);
  return result;
}

/** An ext4 file system in a file, the same bytes each time, filled from `treeDir` when given. Needs `mke2fs`. */
export function makeExt4(path: string, sizeMiB: number, treeDir?: string): void {
  const uuid = "8d5b1d6e-0f0a-4c7e-9f53-6d1f6f5f2c11";
  const tree = treeDir === undefined ? [] : ["-d", treeDir];
  const args = [
    "-q",
    "-F",
    "-t",
    "ext4",
    "-b",
    "4096",
    "-U",
    uuid,
    "-E",
    `hash_seed=${uuid}`,
    ...tree,
    path,
    `${String(sizeMiB)}M`,
  ];
  mustRun("mke2fs", args, { env: { E2FSPROGS_FAKE_TIME: "1700000000" } });
}

/** `e2fsck -fn`: clean, or what it found. */
export function fsck(path: string): { readonly clean: boolean; readonly output: string } {
  const { code, stdout, stderr } = runTool("e2fsck", ["-fn", path]);
  return { clean: code === 0, output: stdout + stderr };
}

/** Undefined when both files hold the same bytes, else what `cmp` says. */
export function cmpFiles(a: string, b: string): string | undefined {
  const { code, stdout, stderr } = runTool("cmp", ["--", a, b]);
  return code === 0 ? undefined : (stdout + stderr).trim();
}

/** Peak resident memory of a running process in bytes (VmHWM). Undefined where there is no /proc, or no such process. */
export function procRss(pid: number): number | undefined {
  const path = `/proc/${String(pid)}/status`;
  if (!existsSync(path)) return undefined;
  const kib = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(path, "utf8"))?.[1];
  return kib === undefined ? undefined : Number(kib) * 1024;
}

// Images ------------------------------------------------------------------------------------------------------------

/** xorshift32: the same bytes for the same seed on every machine. */
export function seededRandom(seed: number): () => number {
  let state = (seed ^ 0x9e3779b9) >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state = (state ^ (state << 5)) >>> 0;
    return state;
  };
}

/** A raw image: a third random, a third text-like, a third never written (holes), in runs of 64 KiB. */
export function makeImage(path: string, sizeBytes: number, seed = 1): void {
  const random = seededRandom(seed);
  const fd = openSync(path, "w");
  ftruncateSync(fd, sizeBytes);
  for (let offset = 0; offset < sizeBytes; offset += 65536) {
    const kind = random() % 3;
    if (kind === 2) continue;
    const bytes = Buffer.alloc(Math.min(65536, sizeBytes - offset));
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
    for (let word = 0; word < words.length; word++) words[word] = kind === 0 ? random() : 0x20206161 + (random() % 13);
    writeSync(fd, bytes, 0, bytes.length, offset);
  }
  closeSync(fd);
}

/** Overwrites `count` scattered 4 KiB pieces with other bytes and returns their offsets, ascending. */
export function changeImage(path: string, count: number, seed: number): readonly number[] {
  const random = seededRandom(seed);
  const fd = openSync(path, "r+");
  const pieces = Math.floor(readSize(path) / 4096);
  const offsets = new Set<number>();
  while (offsets.size < Math.min(count, pieces)) offsets.add((random() % pieces) * 4096);
  for (const offset of offsets) {
    const bytes = Buffer.alloc(4096);
    readSync(fd, bytes, 0, bytes.length, offset);
    for (let at = 0; at < bytes.length; at += 64) bytes.writeUInt32LE(random(), at);
    writeSync(fd, bytes, 0, bytes.length, offset);
  }
  fsyncSync(fd);
  closeSync(fd);
  return [...offsets].sort((a, b) => a - b);
}

function readSize(path: string): number {
  return Number(mustRun("stat", ["-c", "%s", path]).stdout);
}

// The command -------------------------------------------------------------------------------------------------------

/** Environment of a `replicate` process: ours, without what would colour or test its output. */
function cliEnv(extra: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  const { VITEST: _vitest, NODE_ENV: _nodeEnv, FORCE_COLOR: _color, ...rest } = process.env;
  return { ...rest, ...extra };
}

export interface CliOptions {
  readonly cwd?: string;
  readonly env?: NodeJS.ProcessEnv;
  /** A program and its arguments that becomes the command. */
  readonly under?: readonly string[] | undefined;
}

/** A running `replicate`. Its standard output is taken as JSON lines; other lines are in `text` only. */
export class CliProcess {
  readonly lines: JsonLine[] = [];
  readonly pid: number;
  /** Resolves with the exit code, or the signal's name, when the process has ended and its output was read. */
  readonly exited: Promise<number | NodeJS.Signals>;
  #text = "";
  #stderr = "";
  #partial = "";
  #ended = false;
  #watchers = new Set<() => void>();
  readonly #child: ChildProcess;
  readonly #args: readonly string[];

  constructor(scope: Scope, args: readonly string[], options: CliOptions = {}) {
    if (!existsSync(cliPath)) throw new Error("dist/cli/main.js is missing: npm run build");
    this.#args = args;
    const { under = [], ...how } = options;
    const [program = "", ...words] = [...under, process.execPath, cliPath, ...args];
    this.#child = spawn(program, words, {
      ...how,
      env: cliEnv(options.env),
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.pid = this.#child.pid ?? -1;
    this.#child.stdout?.setEncoding("utf8").on("data", (chunk: string) => {
      this.#text += chunk;
      const parts = (this.#partial + chunk).split("\n");
      this.#partial = parts.pop() ?? "";
      for (const part of parts) if (part.startsWith("{")) this.lines.push(JSON.parse(part) as JsonLine);
      this.#changed();
    });
    this.#child.stderr?.setEncoding("utf8").on("data", (chunk: string) => {
      this.#stderr += chunk;
      this.#changed();
    });
    this.exited = new Promise((resolve, reject) => {
      this.#child.on("error", reject);
      this.#child.on("close", (code, signal) => {
        this.#ended = true;
        resolve(code ?? signal ?? -1);
        this.#changed();
      });
    });
    scope.onTestFinished(async () => {
      await this.kill();
    });
  }

  get text(): string {
    return this.#text;
  }

  get stderr(): string {
    return this.#stderr;
  }

  get ended(): boolean {
    return this.#ended;
  }

  #changed(): void {
    for (const watcher of this.#watchers) watcher();
  }

  /** Resolves when `condition` holds, looked at each time the process says something; rejects when it ends before. */
  waitFor(condition: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const look = (): void => {
        const holds = condition();
        if (!holds && !this.#ended) return;
        this.#watchers.delete(look);
        if (holds) resolve();
        else reject(new Error(`replicate ${this.#args.join(" ")} ended early.\n${this.#text}\n${this.#stderr}`));
      };
      this.#watchers.add(look);
      look();
    });
  }

  /** The first line with this event, when it has come. */
  async waitForEvent(event: string): Promise<JsonLine> {
    await this.waitFor(() => this.lines.some((line) => line.event === event));
    return this.lines.find((line) => line.event === event) ?? {};
  }

  signal(name: NodeJS.Signals): void {
    if (!this.#ended) this.#child.kill(name);
  }

  /** SIGTERM, then its end. */
  stop(): Promise<number | NodeJS.Signals> {
    this.signal("SIGTERM");
    return this.exited;
  }

  /** SIGKILL, then its end. */
  kill(): Promise<number | NodeJS.Signals> {
    this.signal("SIGKILL");
    return this.exited;
  }
}

export interface CliResult {
  readonly code: number | NodeJS.Signals;
  readonly stdout: string;
  readonly stderr: string;
  readonly lines: readonly JsonLine[];
}

/** Runs `replicate` to its end. */
export async function replicate(scope: Scope, args: readonly string[], options: CliOptions = {}): Promise<CliResult> {
  const child = new CliProcess(scope, args, options);
  const code = await child.exited;
  return { code, stdout: child.text, stderr: child.stderr, lines: child.lines };
}

export interface Pki {
  readonly dir: string;
  /** Folders for `--tls`. */
  readonly recv: string;
  readonly send: string;
}

/** One CA with a receiver's and a sender's certificate, by `replicate pki`. */
export async function makePki(scope: Scope, dir: string): Promise<Pki> {
  for (const args of [
    ["pki", "init", dir],
    ["pki", "issue", dir, "recv", "--host", "127.0.0.1"],
    ["pki", "issue", dir, "send"],
  ]) {
    const { code, stderr } = await replicate(scope, args);
    if (code !== 0) throw new Error(`replicate ${args.join(" ")} gave ${String(code)}: ${stderr}`);
  }
  return { dir, recv: join(dir, "recv"), send: join(dir, "send") };
}

export interface Receiver {
  readonly port: number;
  readonly storeDir: string;
  readonly lines: readonly JsonLine[];
  readonly process: CliProcess;
  /** SIGTERM; resolves with the exit code. */
  stop(): Promise<number | NodeJS.Signals>;
  kill(): Promise<number | NodeJS.Signals>;
}

/** Starts `replicate recv` and waits until it listens. Killed with the scope at the latest. */
export async function startReceiver(
  scope: Scope,
  options: {
    readonly storeDir: string;
    /** `pki.recv`. */
    readonly tls: string;
    /** Default: any free port. */
    readonly port?: number;
    readonly args?: readonly string[];
    readonly env?: NodeJS.ProcessEnv;
  },
): Promise<Receiver> {
  mkdirSync(options.storeDir, { recursive: true });
  const listen = `127.0.0.1:${String(options.port ?? 0)}`;
  const args = ["recv", "--store", options.storeDir, "--listen", listen, "--tls", options.tls, "--json"];
  const child = new CliProcess(scope, [...args, ...(options.args ?? [])], { env: options.env ?? {} });
  const { port } = await child.waitForEvent("listening");
  if (typeof port !== "number") throw new Error(`no port in the listening line: ${child.text}`);
  return {
    port,
    storeDir: options.storeDir,
    lines: child.lines,
    process: child,
    stop: () => child.stop(),
    kill: () => child.kill(),
  };
}

export interface SendOptions {
  readonly image: string;
  readonly port: number;
  readonly disk: string;
  /** `pki.send`. */
  readonly tls: string;
  readonly args?: readonly string[];
  readonly env?: NodeJS.ProcessEnv;
}

/** The `done` line of `send --json`. */
export interface Done extends JsonLine {
  readonly event: "done";
  readonly disk: string;
  readonly point: number;
  readonly root: string;
  readonly bytesScanned: number;
  readonly bytesRead: number;
  readonly bytesChanged: number;
  readonly bytesWire: number;
  readonly blocksZero: number;
  readonly seconds: number;
  readonly attempts: number;
  readonly consistency: string;
  readonly reason: string;
}

/** The `error` line of `send --json`. */
export interface Failed extends JsonLine {
  readonly event: "error";
  readonly code: string;
  readonly message: string;
  readonly action: string;
}

export interface SendResult extends CliResult {
  readonly done: Done | undefined;
  readonly error: Failed | undefined;
}

/** Starts `replicate send`, for tests that interrupt it. */
export function startSend(scope: Scope, options: SendOptions): CliProcess {
  const target = `127.0.0.1:${String(options.port)}/${options.disk}`;
  const args = ["send", options.image, target, "--tls", options.tls, "--json", ...(options.args ?? [])];
  return new CliProcess(scope, args, { env: options.env ?? {} });
}

/** Runs `replicate send` to its end. */
export async function send(scope: Scope, options: SendOptions): Promise<SendResult> {
  return await finish(startSend(scope, options));
}

/** What a started send said, once it has ended. */
export async function finish(child: CliProcess): Promise<SendResult> {
  const code = await child.exited;
  const { lines, stderr, text } = child;
  return {
    code,
    stdout: text,
    stderr,
    lines,
    done: lines.findLast((line): line is Done => line.event === "done"),
    error: lines.findLast((line): line is Failed => line.event === "error"),
  };
}

/** The replica of a disk in a receiver's store. */
export function replicaPath(storeDir: string, disk: string, format: "raw" | "vhdx" = "raw"): string {
  return join(storeDir, "disks", disk, `replica.${format}`);
}
