/** Images that Hyper-V, QEMU, Disk2VHD and others made, kept beside the repository, and the SHA-256 of their content. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { basename, join } from "node:path";
import { MIB } from "../../../src/base/units.ts";
import type { BlockReader } from "../../../src/image/block-device.ts";

export const samplesFolder = join(import.meta.dirname, "../../../../shared/vhdx");
/** Why they cannot be read here, or undefined. */
export const noSamples = existsSync(samplesFolder) ? undefined : "the sample images are not beside this repository";

export interface Sample {
  readonly file: string;
  readonly digest: string;
  /** A file that must lie in the same folder. */
  readonly parent?: string;
  /** 10 GiB, which take seconds to digest. */
  readonly large?: boolean;
}

export const samples: readonly Sample[] = [
  { file: "dfvfs/ext2.vhdx", digest: "a6c2f0e39afe6c6ab432ca5465349fcefe8dc944398e97b2d957d3f89dbb5d80" },
  { file: "dfvfs/ntfs-dynamic.vhdx", digest: "b92731f8e4bf3532418444d22a9086823a8122569500acd09cd8d2ce20eb98e9" },
  { file: "dfvfs/ntfs-fixed.vhdx", digest: "5237dd895f38052344e2ef35a207fe9df08cd18d17b6ea857a1b93cc475e1f2e" },
  { file: "dfvfs/ntfs-parent.vhdx", digest: "c5523065bc6ef82267be56c5f8888e2876ead8ba7edba2a65a3da8b076231b68" },
  {
    file: "dfvfs/ntfs-differential.vhdx",
    parent: "dfvfs/ntfs-parent.vhdx",
    digest: "1ef1fb5360247aa7d36a38415bc7bf6e1e52f62af5e6bd1283815e82584c7efc",
  },
  { file: "qemu/iotest-dynamic-1G.vhdx", digest: "d3d112d8dab7fd360609f7d5a7b769904b7a2a7d7b6b8c535f65a23293c05478" },
  { file: "qemu/test-disk2vhd.vhdx", digest: "96d964042be9b58dda1725567abfb0cf9fd8380e2118754afa979c2ad445938a" },
  {
    file: "discutils/vhdx-log-replay.vhdx",
    digest: "3ba3b309425b7ff5e8e0199edceed95226250f880c53b24e8eae93865f3fad5e",
  },
  { file: "discutils/btrfs.vhdx", digest: "0b959f9cb4e18348ad8b646f152178282542c8304f02fddf765e3fd1a1de6864" },
  {
    file: "qemu/iotest-dirtylog-10G-4M.vhdx",
    digest: "179cefe8b0587f123393eedf2aa7aa8d25798591178e6bc3950a09762f38f96f",
    large: true,
  },
  {
    file: "discutils/swap.vhdx",
    digest: "60dd30b4c74361427d1089510cabb36e2eeda0cc4747f467ea43173acd358c49",
    large: true,
  },
  {
    file: "discutils/xfs5.vhdx",
    digest: "edc5d630b2da0ddb08992afb58ded06ffb56b884e184b4974fda16e31b7e6817",
    large: true,
  },
  {
    file: "discutils/xfs.vhdx",
    digest: "8ca2bd2d91f1c6ada47128fc2f8d38587e73954ede5a664fe2bb09c19606060e",
    large: true,
  },
  {
    file: "discutils/lvm2.vhdx",
    digest: "f7dc6812a3b12a35f3ec895ce981bd59ff4558270fc80cd812c9cd522bff1295",
    large: true,
  },
];

/** VHD files. */
export const vhdSamples: readonly Sample[] = [
  { file: "dfvfs/ext2.vhd", digest: "870be7ae16c1fa8faab05c6eb9205dc9a7ae35c5f552c5cf8a267c0bc6a5cb99" },
  { file: "dfvfs/ntfs-dynamic.vhd", digest: "8b10b52e3d1e76075d05a5101a6536b9fa8376a5b8f7c22f502d0987d165c876" },
  { file: "dfvfs/ntfs-fixed.vhd", digest: "cd81fade3878f1b2957f1ece168201876bdf4e90c9b30f60c2f232eba5fea76c" },
  { file: "dfvfs/ntfs-parent.vhd", digest: "c91d1766dd4b3327f33a082cbf958d3566dd84a3d71c2473a5ae6155e53171de" },
  { file: "dfvfs/fat-parent.vhd", digest: "bbdb657bc5aa2fde44e2456149f9257a862cb84f4668e338b90e357b0fbdf118" },
  {
    file: "dfvfs/ntfs-differential.vhd",
    parent: "dfvfs/ntfs-parent.vhd",
    digest: "b7922a46a6b08fa4f4fc0c51a25d5587d1d49f15cfade45ca740dd07110ae144",
  },
  {
    file: "dfvfs/fat-differential.vhd",
    parent: "dfvfs/fat-parent.vhd",
    // libvhdi gives another one: it has zeros in sector 186, whose bit is not set, where the parent has the content of a file.
    digest: "f4b61a33ee2f7e8c19f737792a4107e46340026a9a829e4169b751901cc3ef02",
  },
  { file: "dfvfs/image.vhd", digest: "c6db12a7db548e193c29420c1b4533e4708b20c5033db5cc29ef075d48316d25" },
  {
    file: "dfvfs/image-differential.vhd",
    parent: "dfvfs/image.vhd",
    digest: "c6db12a7db548e193c29420c1b4533e4708b20c5033db5cc29ef075d48316d25",
  },
  { file: "qemu/d2v-zerofilled.vhd", digest: "1ba076be94a8a64541c25aae8d5a5f8b0da758c3797af597e03acb431ff8d143" },
];

/** Unpacks one into a folder, sparse. */
export function unpackSample(file: string, folder: string): string {
  const path = join(folder, basename(file));
  const packed = join(samplesFolder, `${file}.gz`);
  execFileSync("sh", [
    "-c",
    'gunzip --stdout "$1" | dd of="$2" bs=64k conv=sparse iflag=fullblock status=none',
    "sh",
    packed,
    path,
  ]);
  // What ends in zeros ends in a hole.
  const sizeBytes = Number(
    execFileSync("sh", ["-c", 'gunzip --stdout "$1" | wc --bytes', "sh", packed], { encoding: "utf8" }),
  );
  execFileSync("truncate", ["--size", String(sizeBytes), path]);
  return path;
}

/** SHA-256 of all of a disk, of which holes are not read. */
export async function contentDigest(reader: BlockReader): Promise<string> {
  const digest = createHash("sha256");
  const zeros = new Uint8Array(MIB);
  const buffer = new Uint8Array(MIB);
  for await (const { kind, offset, length } of reader.extents(0, reader.sizeBytes)) {
    for (let done = 0; done < length; done += MIB) {
      const piece = (kind === "data" ? buffer : zeros).subarray(0, length - done);
      if (kind === "data") await reader.read(piece, offset + done);
      digest.update(piece);
    }
  }
  return digest.digest("hex");
}
