/**
 * A small Linux guest in QEMU for tests that take a whole machine down: a Debian kernel of this machine, and an initramfs with busybox, this Node and the
 * built command. Nothing is downloaded. Its disk is an NBD export; the network reaches one port of it and nothing else.
 */
import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { accessSync, chmodSync, constants, cpSync, existsSync, mkdirSync, openSync, readdirSync } from "node:fs";
import { closeSync, copyFileSync, readFileSync, realpathSync, statSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { basename, dirname, extname, join } from "node:path";
import { hasTool, type JsonLine, root, runTool, type Scope } from "./kit.ts";

const qemu = "qemu-system-x86_64";
/** The only port that is reached from outside, of the guest. */
export const guestPort = 7000;

/** Modules that are loaded in this order, after what they need; a kernel may have them built in. */
const modules = ["virtio_pci", "virtio_blk", "virtio_net", "crc32c_generic", "ext4"];
/** Not in every kernel. */
const optionalModules = new Set(["crc32c_generic"]);

// What the machine has --------------------------------------------------------------------------------------------------

interface Kernel {
  readonly image: string;
  readonly modulesDir: string;
}

/** The newest kernel that can be read and whose modules are there. */
function findKernel(): Kernel | undefined {
  const images = existsSync("/boot") ? readdirSync("/boot").filter((name) => name.startsWith("vmlinuz-")) : [];
  for (const name of images.sort().reverse()) {
    const kernel = { image: join("/boot", name), modulesDir: join("/lib/modules", name.slice("vmlinuz-".length)) };
    try {
      accessSync(kernel.image, constants.R_OK);
      accessSync(join(kernel.modulesDir, "modules.dep"), constants.R_OK);
      return kernel;
    } catch {
      // Of another user, or half removed; the next one is tried.
    }
  }
  return undefined;
}

/** Why no guest can be run here, or undefined. */
export function guestObstacle(): string | undefined {
  if (process.arch !== "x64") return `the guest is for x86-64, this is ${process.arch}`;
  const packages = { [qemu]: "qemu-system-x86", busybox: "busybox-static", mke2fs: "e2fsprogs", ldd: "libc-bin" };
  const missing = Object.entries(packages).filter(([tool]) => !hasTool(tool));
  if (missing.length > 0) {
    return `not installed: ${missing.map(([tool, from]) => `${tool} (Debian: ${from})`).join(", ")}`;
  }
  if (findKernel() === undefined) {
    return "no kernel in /boot that can be read and has its modules in /lib/modules (Debian: linux-image-cloud-amd64)";
  }
  return undefined;
}

/**
 * True when KVM runs the kernel, which a device `/dev/kvm` alone does not say. Without an initramfs it panics and QEMU ends; where it does not within
 * 20 seconds, it is taken to hang.
 */
export function kvmWorks({ kernelPath }: GuestSystem): boolean {
  const machine = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35", "-m", "512"];
  const kernel = ["-accel", "kvm", "-cpu", "max", "-kernel", kernelPath, "-append", "panic=-1"];
  return (
    spawnSync(qemu, [...machine, ...kernel], { env: toolEnv(), timeout: 20_000, killSignal: "SIGKILL" }).status === 0
  );
}

function toolEnv(): NodeJS.ProcessEnv {
  return { ...process.env, PATH: `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin` };
}

// The initramfs -----------------------------------------------------------------------------------------------------------

export interface GuestSystem {
  readonly kernelPath: string;
  readonly initramfsPath: string;
}

/**
 * Builds what the guest boots from into `dir`. `init` is the script that runs as process 1, with the file systems of the kernel mounted, the modules
 * loaded and the network up; `copies` are files and folders of ours by their place in the guest.
 */
export function buildGuest(
  dir: string,
  { init, copies }: { readonly init: string; readonly copies: Readonly<Record<string, string>> },
): GuestSystem {
  const kernel = findKernel();
  if (kernel === undefined) throw new Error("no kernel");
  const tree = join(dir, "initramfs");
  for (const name of ["bin", "dev", "proc", "sys", "tmp", "modules", "etc"])
    mkdirSync(join(tree, name), { recursive: true });
  const busybox = findTool("busybox");
  copyProgram(tree, busybox, "/bin/busybox");
  copyProgram(tree, process.execPath, "/bin/node");
  copyCommand(tree);
  for (const [target, source] of Object.entries(copies)) cpSync(source, join(tree, target), { recursive: true });
  const loaded = copyModules(tree, kernel);
  writeFileSync(join(tree, "etc/passwd"), "root:x:0:0:root:/:/bin/sh\n");
  writeFileSync(join(tree, "init"), initScript(loaded, init));
  chmodSync(join(tree, "init"), 0o755);

  const initramfsPath = join(dir, "initramfs.cpio");
  const names = readdirSync(tree, { recursive: true, encoding: "utf8" });
  const out = openSync(initramfsPath, "w");
  // `-R` takes the files from the user who runs the test.
  execFileSync(busybox, ["cpio", "-o", "-H", "newc", "-R", "0:0"], {
    cwd: tree,
    input: `${names.sort().join("\n")}\n`,
    stdio: ["pipe", out, "ignore"],
  });
  closeSync(out);
  return { kernelPath: kernel.image, initramfsPath };
}

function initScript(loaded: readonly string[], rest: string): string {
  return `#!/bin/busybox sh
export PATH=/bin HOME=/tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
# The first serial port has what the kernel says, the second one what we say.
exec </dev/null >/dev/ttyS1 2>&1
${loaded.map((name) => `insmod /modules/${name} || echo "no module ${name}"`).join("\n")}
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
${rest}
poweroff -f
`;
}

function findTool(name: string): string {
  return runTool("which", [name]).stdout.trim();
}

/** Copies a program and the libraries it is linked with. */
function copyProgram(tree: string, source: string, target: string): void {
  mkdirSync(join(tree, dirname(target)), { recursive: true });
  copyFileSync(realpathSync(source), join(tree, target));
  chmodSync(join(tree, target), 0o755);
  copyLibraries(tree, source);
}

/** Of a static program: none. */
function copyLibraries(tree: string, binary: string): void {
  for (const [path] of runTool("ldd", [binary]).stdout.matchAll(/(?<=\s)\/\S+(?= \()/g)) {
    const target = join(tree, path);
    if (existsSync(target)) continue;
    mkdirSync(dirname(target), { recursive: true });
    copyFileSync(realpathSync(path), target);
    chmodSync(target, 0o755);
  }
}

/** `dist` and the packages it loads, as a package's user would have them. */
function copyCommand(tree: string): void {
  const target = join(tree, "replicate");
  mkdirSync(target);
  copyFileSync(join(root, "package.json"), join(target, "package.json"));
  cpSync(join(root, "dist"), join(target, "dist"), { recursive: true, filter: isLoaded });
  const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")) as {
    readonly packages: Readonly<Record<string, { readonly dev?: boolean }>>;
  };
  for (const [path, { dev }] of Object.entries(lock.packages)) {
    const source = join(root, path);
    if (path === "" || dev === true || !existsSync(source)) continue;
    cpSync(realpathSync(source), join(target, path), { recursive: true, filter: isLoaded });
  }
  for (const name of readdirSync(target, { recursive: true, encoding: "utf8" })) {
    if (name.endsWith(".node")) copyLibraries(tree, join(target, name));
  }
}

function isLoaded(source: string): boolean {
  if (statSync(source).isDirectory()) return basename(source) !== "obj.target" && !source.includes("musl");
  return [".js", ".cjs", ".mjs", ".json", ".node", ".wasm"].includes(extname(source));
}

/** Copies the modules and what they depend on, and returns their file names in the order of loading. */
function copyModules(tree: string, { modulesDir }: Kernel): readonly string[] {
  const nameOf = (path: string): string =>
    basename(path)
      .replace(/\.ko.*$/, "")
      .replaceAll("-", "_");
  const read = (name: string): readonly string[] => readFileSync(join(modulesDir, name), "utf8").split("\n");
  const builtIn = new Set(read("modules.builtin").map(nameOf));
  const found = new Map<string, readonly string[]>();
  for (const line of read("modules.dep")) {
    const [path = "", needs = ""] = line.split(":");
    // What is needed first comes last.
    found.set(nameOf(path), [path, ...needs.split(" ").filter(Boolean)].reverse());
  }
  const order = new Set<string>();
  for (const name of modules) {
    const paths = found.get(name);
    if (paths === undefined && !builtIn.has(name) && !optionalModules.has(name)) throw new Error(`no module ${name}`);
    for (const path of paths ?? []) order.add(path);
  }
  return [...order].map((path) => {
    const target = join(tree, "modules", basename(path));
    copyFileSync(join(modulesDir, path), target);
    const unpack = { ".xz": "xz", ".zst": "zstd", ".gz": "gzip" }[extname(path)];
    if (unpack === undefined) return basename(path);
    const { code, stderr } = runTool(unpack, ["-d", "-q", "-f", target]);
    if (code !== 0) throw new Error(`${unpack} ${path}: ${stderr}`);
    return basename(path, extname(path));
  });
}

// The machine -------------------------------------------------------------------------------------------------------------

export interface GuestOptions {
  readonly system: GuestSystem;
  /** Unix socket of the NBD server whose export is the first disk. */
  readonly diskSocket?: string;
  /** Time for which requests wait while the server is away; else they fail at once. */
  readonly reconnectSeconds?: number;
  /** Raw images, its next disks. */
  readonly files?: readonly string[];
  /** On 127.0.0.1, forwarded to {@link guestPort}. */
  readonly port: number;
  readonly kvm: boolean;
  /** File that gets what the kernel says; replaced. */
  readonly kernelLog: string;
  /** More words of the kernel's command line, for the init script to find in /proc/cmdline. */
  readonly words?: readonly string[];
}

/** A running guest. What its second serial port says is taken as JSON lines; other lines are in `text` only. */
export class Guest {
  readonly lines: JsonLine[] = [];
  readonly exited: Promise<void>;
  readonly kernelLog: string;
  #text = "";
  #partial = "";
  #ended = false;
  readonly #watchers = new Set<() => void>();
  readonly #child: ChildProcess;

  constructor(scope: Scope, options: GuestOptions) {
    this.kernelLog = options.kernelLog;
    this.#child = spawn(qemu, qemuArguments(options), { env: toolEnv(), stdio: ["pipe", "pipe", "pipe"] });
    // It may be gone, which `exited` tells.
    this.#child.stdin?.on("error", () => undefined);
    this.#child.stdout?.setEncoding("utf8").on("data", (chunk: string) => {
      this.#text += chunk;
      const parts = (this.#partial + chunk).split("\n");
      this.#partial = parts.pop() ?? "";
      for (const part of parts) if (part.startsWith("{")) this.lines.push(JSON.parse(part) as JsonLine);
      for (const watcher of this.#watchers) watcher();
    });
    this.#child.stderr?.setEncoding("utf8").on("data", (chunk: string) => {
      this.#text += chunk;
    });
    this.exited = new Promise((resolve, reject) => {
      this.#child.on("error", reject);
      this.#child.on("close", () => {
        this.#ended = true;
        resolve();
        for (const watcher of this.#watchers) watcher();
      });
    });
    scope.onTestFinished(() => this.kill());
  }

  /** What it said, and the kernel. */
  get text(): string {
    const kernel = existsSync(this.kernelLog) ? readFileSync(this.kernelLog, "latin1") : "";
    return `${this.#text}\n${kernel}`;
  }

  /** The first line with this event, when it has come; rejects when the guest ends before. */
  async waitForEvent(event: string): Promise<JsonLine> {
    const find = (): JsonLine | undefined => this.lines.find((line) => line.event === event);
    await this.waitFor(() => find() !== undefined, event);
    return find() ?? {};
  }

  /** Resolves when `condition` holds, looked at each time the guest says something; rejects when it ends before. */
  waitFor(condition: () => boolean, what: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const look = (): void => {
        const holds = condition();
        if (!holds && !this.#ended) return;
        this.#watchers.delete(look);
        if (holds) resolve();
        else reject(new Error(`the guest ended before "${what}":\n${this.text}`));
      };
      this.#watchers.add(look);
      look();
    });
  }

  /** A line for whoever reads the guest's second serial port. */
  say(line: string): void {
    this.#child.stdin?.write(`${line}\n`);
  }

  /** SIGKILL of QEMU, and its end. */
  kill(): Promise<void> {
    if (!this.#ended) this.#child.kill("SIGKILL");
    return this.exited;
  }
}

function qemuArguments(options: GuestOptions): readonly string[] {
  const { system, port, kvm, kernelLog, words = [] } = options;
  const net = `user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:${String(port)}-10.0.2.15:${String(guestPort)}`;
  return [
    ...["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"],
    ...["-machine", "q35", "-accel", kvm ? "kvm" : "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"],
    ...["-kernel", system.kernelPath, "-initrd", system.initramfsPath],
    // The kernel's tests of its ciphers may never end where the processor is emulated.
    ...["-append", ["console=ttyS0", "quiet", "panic=-1", "cryptomgr.notests", ...words].join(" ")],
    ...["-serial", `file:${kernelLog}`, "-serial", "stdio"],
    ...disksOf(options).flatMap((disk, nth) => [
      ...["-blockdev", `${disk},node-name=disk${String(nth)}`],
      ...["-device", `virtio-blk-pci,drive=disk${String(nth)},write-cache=on`],
    ]),
    ...["-netdev", net, "-device", "virtio-net-pci,netdev=net,romfile="],
  ];
}

function disksOf({ diskSocket, reconnectSeconds, files = [] }: GuestOptions): readonly string[] {
  const waits = reconnectSeconds === undefined ? "" : `,reconnect-delay=${String(reconnectSeconds)}`;
  const nbd = `driver=nbd,server.type=unix,server.path=${diskSocket ?? ""}${waits},cache.direct=on,cache.no-flush=off`;
  return [...(diskSocket === undefined ? [] : [nbd]), ...files.map((path) => `driver=file,filename=${path}`)];
}

/** A port nobody listens on, for QEMU, which cannot be asked to choose one. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(0, "127.0.0.1", resolve);
  });
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
