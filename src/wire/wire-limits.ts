/**
 * Maxima that only headers have; those shared with other folders are in base/limits.ts. docs/protocol.md lists both.
 */
import { limits } from "../base/limits.ts";
import { BLOCK_BYTES_MIN, EXTENT_BYTES_MAX, KIB, PART_BYTES } from "../base/units.ts";

export const wireLimits = {
  /** Characters of an identifier: instance, source, cycle, generation, token. */
  nameCharsMax: 128,
  /** Characters of a disk's name. */
  diskNameCharsMax: 63,
  /** Characters of a text for people: name of a source, label of a point. */
  textCharsMax: 4_096,
  /** Characters of a short text for people: software, phase. */
  shortTextCharsMax: 256,
  /** Features in one list of `hello`. */
  featuresMax: 64,
  /** Characters of a feature's or a codec's name. */
  featureCharsMax: 32,
  /** Entries of the details of an error. */
  detailsMax: 32,
  /** Characters of a key of those details. */
  detailKeyCharsMax: 64,
  /** Characters of a text among those details. */
  detailTextCharsMax: 256,
  /** Blocks of one data frame. */
  blocksPerDataMax: EXTENT_BYTES_MAX / PART_BYTES,
  /** Blocks of one zero frame: a long run is split, so that it counts as progress and each frame is bounded work. */
  blocksPerZeroMax: 65_536,
  /** Pages of one `blocks`. */
  pagesPerAnswerMax: 64,
  /** Block numbers of the largest disk with the smallest blocks. */
  blockNumbersMax: limits.diskBytesMax / BLOCK_BYTES_MIN,
  /** Maps and arrays of a header inside one another, the header's own map included. */
  headerDepthMax: 3,
  /** Entries of one map or array of a header. */
  headerItemsMax: 64,
  /** Bytes of one key. */
  headerKeyBytesMax: 64,
  /** Bytes of one string or byte array of a header. */
  headerBytesMax: 16 * KIB,
} as const;
