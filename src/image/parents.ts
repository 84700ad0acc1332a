/** Finds the parent of a differencing image by what the image says of it. */
import { basename, dirname, relative, resolve } from "node:path";
import { errnoOf, invariant, ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import type { FileStat, Storage, StorageFile } from "../storage/seam.ts";

/** Of a path in a message: those of Windows have no more. */
const pathCharsMax = 260;

export interface NamedPath {
  /** `relative`: to the folder of the child. Others are mostly of Windows, and name no place here. */
  readonly kind: "relative" | "volume" | "absolute";
  /** As it is written. */
  readonly path: string;
}

export interface WantedParent {
  readonly paths: readonly NamedPath[];
  /** By what the right one is told, for a message: "the data 7584f8fb-...". */
  readonly words: string;
}

/**
 * Opens the parent of the last of `files`, which are the image and its parents so far. Whether it is the right one, the caller finds out. Errors:
 * `image-not-found` with every path that was tried, or with several that differ by case; `image-damaged` for a circle; `image-unreadable`;
 * `limit-exceeded`.
 */
export async function openParent(
  files: readonly { readonly file: StorageFile }[],
  wanted: WantedParent,
  storage: Storage,
): Promise<StorageFile> {
  const path = files.at(-1)?.file.path;
  invariant(path !== undefined, "a parent has a child");
  if (files.length >= limits.chainFilesMax) {
    throw new ReplicationError(
      "limit-exceeded",
      `${files[0]?.file.path ?? path}: its chain of parents has more than ${limits.chainFilesMax} files: merge some of them`,
    );
  }
  const tried: string[] = [];
  for (const candidate of parentPaths(wanted.paths, dirname(path))) {
    const found = await findFile(candidate, { child: path, storage });
    if (found.path === undefined) {
      tried.push(`${shortened(candidate)}${found.problem === undefined ? "" : ` (${found.problem})`}`);
      continue;
    }
    for (const each of files) {
      const known = await each.file.stat();
      if (known.device !== found.stat.device || known.inode !== found.stat.inode) continue;
      throw new ReplicationError(
        "image-damaged",
        `${path} is a damaged image: its parent is ${found.path}, which builds upon it in turn`,
        { details: { file: path, parent: found.path } },
      );
    }
    return await openFound(found.path, { child: path, storage });
  }
  const written = wanted.paths.map((each) => shortened(each.path)).join(", ");
  throw new ReplicationError(
    "image-not-found",
    `${path} is a differencing image, and its parent was not found. It names ${written}; looked for ${tried.join(", ")}; wanted is ` +
      `${wanted.words}. Put the parent into the same folder`,
    { details: { file: path } },
  );
}

type Found =
  | { readonly path: string; readonly stat: FileStat }
  /** What the system said, where that was more than that there is none. */
  | { readonly path?: undefined; readonly problem: string | undefined };

interface Search {
  readonly child: string;
  readonly storage: Storage;
}

/**
 * The file at a path; where there is none, the one whose path differs from it by case alone, as Windows finds it. Errors: `image-not-found` when there are
 * several of those.
 */
async function findFile(candidate: string, search: Search): Promise<Found> {
  try {
    const { storage } = search;
    const stat = await storage.stat(candidate);
    if (stat !== undefined) return isImage(stat) ? { path: candidate, stat } : { problem: "no file" };
    const alike = await pathOfAnyCase(candidate, search);
    if (alike === undefined) return { problem: undefined };
    const other = await storage.stat(alike);
    return other !== undefined && isImage(other) ? { path: alike, stat: other } : { problem: undefined };
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === undefined || error instanceof ReplicationError) throw error;
    return { problem: errno };
  }
}

async function pathOfAnyCase(candidate: string, { child, storage }: Search): Promise<string | undefined> {
  let at = dirname(child);
  for (const step of relative(at, candidate).split("/")) {
    const next = resolve(at, step);
    if (step === ".." || (await storage.stat(next)) !== undefined) {
      at = next;
      continue;
    }
    const names = (await storage.list(at)) ?? [];
    const alike = names.filter((name) => name.toLowerCase() === step.toLowerCase());
    const [name] = alike;
    if (name === undefined) return undefined;
    if (alike.length > 1) {
      const folder = at;
      throw new ReplicationError(
        "image-not-found",
        `${child} is a differencing image, and which file is its parent cannot be told: it names ${shortened(candidate)}, and there are ` +
          `${alike.map((each) => resolve(folder, each)).join(" and ")}. Give the right one exactly that name`,
        { details: { file: child } },
      );
    }
    at = resolve(at, name);
  }
  return at;
}

async function openFound(path: string, { child, storage }: Search): Promise<StorageFile> {
  try {
    return await storage.open(path);
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === undefined) throw error;
    throw new ReplicationError(
      "image-unreadable",
      `${child} builds upon ${path}, which cannot be opened (${errno}): give this user the right to read it, or check the medium`,
      { cause: error, details: { file: child, parent: path, errno } },
    );
  }
}

function isImage({ kind }: FileStat): boolean {
  return kind === "file" || kind === "device";
}

/** For a message: an image may name paths of any length. */
function shortened(path: string): string {
  return path.length <= pathCharsMax ? path : `${path.slice(0, pathCharsMax)}... (${path.length} characters)`;
}

/** Where a parent may be, most likely first: by its relative path; where that does not lead to it, beside its child. */
function parentPaths(named: readonly NamedPath[], folder: string): string[] {
  const usable = named.filter(({ path }) => !path.includes("\0"));
  const paths: string[] = [];
  for (const { kind, path } of usable) {
    if (kind === "relative") paths.push(resolve(folder, path.replaceAll("\\", "/")));
    else if (path.startsWith("/")) paths.push(resolve(path));
  }
  for (const { path } of usable) {
    const name = basename(path.replaceAll("\\", "/"));
    if (name !== "" && name !== "." && name !== "..") paths.push(resolve(folder, name));
  }
  return [...new Set(paths)];
}
