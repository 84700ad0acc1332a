/** Finds the parent of a differencing image by what the image says of it. */
import { basename, dirname, resolve } from "node:path";
import { invariant, ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import type { Storage, StorageFile } from "../storage/seam.ts";

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
 * `image-not-found` with every path that was tried, `image-damaged` for a circle, `limit-exceeded`.
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
  const tried = parentPaths(wanted.paths, dirname(path));
  for (const candidate of tried) {
    const stat = await storage.stat(candidate);
    if (stat === undefined || (stat.kind !== "file" && stat.kind !== "device")) continue;
    for (const each of files) {
      const known = await each.file.stat();
      if (known.device !== stat.device || known.inode !== stat.inode) continue;
      throw new ReplicationError(
        "image-damaged",
        `${path} is a damaged image: its parent is ${candidate}, which builds upon it in turn`,
        { details: { file: path, parent: candidate } },
      );
    }
    return await storage.open(candidate);
  }
  const written = wanted.paths.map((each) => each.path).join(", ");
  throw new ReplicationError(
    "image-not-found",
    `${path} is a differencing image, and its parent was not found. It names ${written}; looked for ${tried.join(", ")}; wanted is ` +
      `${wanted.words}. Put the parent into the same folder`,
    { details: { file: path } },
  );
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
