/** Every maximum has a name and a home here; relations between them are checked by the tests of this folder. */
import { GIB, KIB, MIB, TIB } from "./units.ts";

export const limits = {
  /** Largest disk: 64 TiB, the largest VHDX. */
  diskBytesMax: 64 * TIB,
  /** Of the log of a VHDX image. */
  vhdxLogBytesMax: 256 * MIB,
  /** Changes that logs of VHDX images hold which were not written out: of all files of a chain. */
  vhdxLogChangesMax: 65_536,
  /** An image file with a table in which content lies further behind is none. */
  imageFileBytesMax: 128 * TIB,
  /** Files of a chain of differencing images. */
  chainFilesMax: 64,
  /** Pages of the tables of one image file kept in memory, in bytes. */
  imageTableCacheBytes: 4 * MIB,
  /** Bytes of a frame's header (msgpack). */
  frameHeaderBytesMax: 64 * KIB,
  /** Disks that are cut together. */
  groupDisksMax: 64,
  /** Bytes of a frame's payload: one extent, or its stored form with a codec's worst growth. */
  framePayloadBytesMax: MIB + 16 * KIB,
  /** Text of an error that crosses the wire. */
  errorTextCharsMax: 2_000,
  /** Blocks named in one digest or repeat request. */
  blocksPerRequestMax: 1_024,
  /** Table pages named in one page digest request. */
  pagesPerRequestMax: 8_192,
  /**
   * Data and zero frames a receiver lets one session have in flight; each data frame takes one slot of the pool (at most 1 MiB of
   * payload), so credit is counted in frames and the bound on memory is exact.
   */
  creditFramesMax: 64,
  creditFramesDefault: 20,
  /** Shared memory of one process for blocks, whatever the number and size of disks. */
  poolBytesDefault: 96 * MIB,
  /** Connections of one session. */
  connectionsMax: 16,
  /** Connections of one receiver that have not finished TLS; and as many that have, and have not said hello. */
  pendingHandshakesMax: 64,
  /** Sessions of one receiver at a time. */
  sessionsMax: 256,
  /** Of one identity at one receiver, unless its options say otherwise: sessions at a time, disks it owns, sum of their sizes in bytes. */
  identitySessionsMax: 128,
  identityDisksMax: 1_024,
  identityDiskBytesMax: 1_024 * TIB,
  /** Time for TLS and the handshake before a connection is closed. */
  handshakeMillis: 10_000,
  /** No frame for this long: the peer is dead. */
  silenceMillis: 30_000,
  /** A side with nothing to say says so this often. */
  heartbeatMillis: 5_000,
  /** No progress for this long is reported as stalled (not ended). */
  stallMillis: 60_000,
  /** Of one JSON file of a store. */
  stateFileBytesMax: MIB,
  /** Table pages kept in memory for one disk, in bytes. */
  tableCacheBytes: 16 * MIB,
  /** Regions of a tracked disk that are hot at a time: after an unclean end all of each is dirty, 1 GiB in all. */
  journalHotRegionsMax: 256,
  /** Reserve of free space that stores and spill files keep by default. */
  reserveBytesDefault: 1 * GIB,
} as const;
