/**
 * Which format an image has, by its content; its name only raises doubt. Pure.
 * A raw disk may begin with anything, so a known signature is a reason to refuse until the user insists on raw.
 */

export type ImageFormat =
  | "raw"
  | "vhdx"
  | "vhd"
  | "qcow2"
  | "vmdk"
  | "vdi"
  | "qed"
  | "parallels"
  | "gzip"
  | "bzip2"
  | "xz"
  | "zstd"
  | "lz4"
  | "zip";

/** What {@link detectFormat} must be shown of the start of an image, at least (or the whole of a shorter one). */
export const detectHeadBytes = 512;
/** Likewise of the end. */
export const detectTailBytes = 512;

interface Signature {
  readonly format: ImageFormat;
  readonly at: number;
  /** One character a byte. */
  readonly bytes: string;
}

const signatures: readonly Signature[] = [
  { format: "vhdx", at: 0, bytes: "vhdxfile" },
  // Dynamic and differencing VHDs begin with a copy of their footer.
  { format: "vhd", at: 0, bytes: "conectix" },
  { format: "qcow2", at: 0, bytes: "QFI\xfb" },
  { format: "vmdk", at: 0, bytes: "KDMV" },
  { format: "vmdk", at: 0, bytes: "COWD" },
  { format: "vmdk", at: 0, bytes: "\xbe\xba\xfe\xca\0\0\0\0" },
  { format: "vmdk", at: 0, bytes: "# Disk DescriptorFile" },
  { format: "vdi", at: 64, bytes: "\x7f\x10\xda\xbe" },
  { format: "qed", at: 0, bytes: "QED\0" },
  { format: "parallels", at: 0, bytes: "WithoutFreeSpace" },
  { format: "parallels", at: 0, bytes: "WithouFreSpacExt" },
  { format: "gzip", at: 0, bytes: "\x1f\x8b\x08" },
  { format: "bzip2", at: 4, bytes: "1AY&SY" },
  { format: "xz", at: 0, bytes: "\xfd7zXZ\0" },
  { format: "zstd", at: 0, bytes: "\x28\xb5\x2f\xfd" },
  { format: "lz4", at: 0, bytes: "\x04\x22\x4d\x18" },
  { format: "zip", at: 0, bytes: "PK\x03\x04" },
];

/** `qemu`: the name of the format in QEMU's tools. `unpack`: the command that undoes a compression. */
const formats: Readonly<
  Record<Exclude<ImageFormat, "raw">, { readonly title: string; readonly qemu?: string; readonly unpack?: string }>
> = {
  vhdx: { title: "a VHDX image", qemu: "vhdx" },
  vhd: { title: "a VHD image", qemu: "vpc" },
  qcow2: { title: "a QCOW2 image", qemu: "qcow2" },
  vmdk: { title: "a VMDK image", qemu: "vmdk" },
  vdi: { title: "a VDI image", qemu: "vdi" },
  qed: { title: "a QED image", qemu: "qed" },
  parallels: { title: "a Parallels image", qemu: "parallels" },
  gzip: { title: "compressed with gzip", unpack: "gunzip --keep" },
  bzip2: { title: "compressed with bzip2", unpack: "bunzip2 --keep" },
  xz: { title: "compressed with xz", unpack: "unxz --keep" },
  zstd: { title: "compressed with zstd", unpack: "unzstd --keep" },
  lz4: { title: "compressed with lz4", unpack: "unlz4 --keep" },
  zip: { title: "a ZIP archive", unpack: "unzip" },
};

/** Endings that promise a format which {@link detectFormat} would have seen. */
const endings: Readonly<Record<string, ImageFormat>> = {
  vhdx: "vhdx",
  avhdx: "vhdx",
  vhds: "vhdx",
  vhd: "vhd",
  avhd: "vhd",
  qcow2: "qcow2",
  qcow: "qcow2",
  vmdk: "vmdk",
  vdi: "vdi",
  qed: "qed",
};

/** The format by content. `head` and `tail`: the first and last bytes of the image, see the constants above. */
export function detectFormat(image: { readonly head: Uint8Array; readonly tail: Uint8Array }): ImageFormat {
  for (const { format, at, bytes } of signatures) {
    if (holds(image.head, at, bytes)) return format;
  }
  // The footer of a fixed VHD: 512 bytes at the end, or 511 as written before Virtual PC 2004. Its checksum plays no part: a
  // damaged footer makes a damaged VHD, not a raw disk that is a sector longer.
  if (holds(image.tail, image.tail.length - 512, "conectix")) return "vhd";
  if (holds(image.tail, image.tail.length - 511, "conectix")) return "vhd";
  return "raw";
}

/** The format the name of a file promises, or undefined when it promises none that could be recognised. */
export function promisedFormat(fileName: string): ImageFormat | undefined {
  const dot = fileName.lastIndexOf(".");
  const ending = fileName.slice(dot + 1).toLowerCase();
  return dot >= 0 && Object.hasOwn(endings, ending) ? endings[ending] : undefined;
}

/** "a QCOW2 image", "compressed with gzip" ... */
export function formatTitle(format: ImageFormat): string {
  return format === "raw" ? "a raw image" : formats[format].title;
}

/** How an image becomes a raw one: a whole command, ready to paste. */
export function formatAdvice(format: Exclude<ImageFormat, "raw">, path: string): string {
  const { qemu, unpack } = formats[format];
  const quoted = shellQuote(path);
  if (unpack !== undefined) return `Unpack it first (${unpack} ${quoted})`;
  return `Convert it (qemu-img convert -f ${qemu} -O raw ${quoted} ${shellQuote(`${path}.raw`)})`;
}

/**
 * What to do about an image that is not read directly: sentences, and whole commands on lines of their own, ready to paste. Formats that QEMU reads are
 * served by `qemu-nbd`: nothing has to be converted, and deltas work.
 */
export function readingAdvice(format: Exclude<ImageFormat, "raw">, path: string): string {
  const { qemu } = formats[format];
  if (qemu === undefined) return `${formatAdvice(format, path)}. `;
  const socket = Buffer.byteLength(path) + 5 <= socketPathBytesMax ? `${path}.sock` : "/tmp/replicate-nbd.sock";
  const uri = `nbd+unix:///?socket=${socket.split("/").map(encodeURIComponent).join("/")}`;
  return (
    "Serve it read-only over NBD, in a terminal of its own:\n" +
    `  qemu-nbd -r -t -f ${qemu} -k ${shellQuote(socket)} ${shellQuote(path)}\n` +
    "and send what it serves:\n" +
    `  replicate send ${shellQuote(uri)} HOST:PORT/DISK --tls DIR/NAME\n`
  );
}

/** Longest path of a unix socket on Linux. */
const socketPathBytesMax = 107;

function holds(bytes: Uint8Array, at: number, text: string): boolean {
  if (at < 0 || at + text.length > bytes.length) return false;
  for (let index = 0; index < text.length; index++) {
    if (bytes[at + index] !== text.charCodeAt(index)) return false;
  }
  return true;
}

function shellQuote(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
