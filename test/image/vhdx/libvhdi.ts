/** libvhdi, which reads VHDX files and chains of them, as python3-libvhdi of Debian has it. */
import { execFileSync } from "node:child_process";
import { hasCommand } from "../../storage/scratch.ts";

const python = ["/usr/bin/python3", "python3"].find((command) => hasCommand(command, "-c", "import pyvhdi"));
/** Why it cannot be asked, for the name of a test; empty: it can. */
export const noLibvhdi = python === undefined ? " (skipped: no python3-libvhdi)" : "";

const program = `
import hashlib, json, pyvhdi, sys
paths, pieces = json.loads(sys.argv[1]), json.loads(sys.argv[2])
files = [pyvhdi.file() for _ in paths]
for path, file in zip(paths, files): file.open(path)
for child, parent in zip(files, files[1:]): child.set_parent(parent)
disk = files[0]
if pieces is None: pieces = [[0, disk.get_media_size()]]
digest = hashlib.sha256()
for offset, length in pieces:
    while length > 0:
        piece = disk.read_buffer_at_offset(min(length, 1 << 20), offset)
        digest.update(piece); offset += len(piece); length -= len(piece)
print(json.dumps([disk.get_media_size(), digest.hexdigest()]))
`;

/**
 * Size of a disk, and SHA-256 of the pieces that are named, or of all of it. `paths`: the image, its parent, and so on.
 */
export function askLibvhdi(
  paths: readonly string[],
  pieces?: readonly (readonly [offset: number, length: number])[],
): { readonly sizeBytes: number; readonly digest: string } {
  const args = ["-c", program, JSON.stringify(paths), JSON.stringify(pieces ?? null)];
  const said = execFileSync(python ?? "", args, { encoding: "utf8", stdio: "pipe" });
  const [sizeBytes, digest] = JSON.parse(said) as [number, string];
  return { sizeBytes, digest };
}
