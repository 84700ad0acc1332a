/**
 * The mark of certificates made by `replicate pki`: a non-critical extension with an object identifier of our own.
 *
 * It decides only whether `--allow` may be left out, and it counts only on an authority that the user put into ca.pem, so
 * nobody gains anything by copying it into a certificate of their own. The project has no registered enterprise number;
 * under 59999 follows an arc drawn by chance, so that a certificate of anybody else does not carry the same identifier by accident.
 */

/** `1.3.6.1.4.1.59999.` then the arc drawn by chance, then 1: made by `replicate pki`. */
export const markIdentifier = "1.3.6.1.4.1.59999.847203691.1";

/** Content of the extension: INTEGER 1, the version of the mark. */
export const markValue: Uint8Array<ArrayBuffer> = Uint8Array.of(0x02, 0x01, 0x01);

/** Certificates of ours are valid from a little before they are made: a peer's clock may be behind. */
export const backdateMillis = 5 * 60_000;

const SEQUENCE = 0x30;
const OBJECT_IDENTIFIER = 0x06;
/** [3] EXPLICIT: the extensions of a TBSCertificate (RFC 5280 §4.1). */
const EXTENSIONS = 0xa3;

interface Element {
  readonly tag: number;
  readonly content: Uint8Array;
}

/**
 * True when the DER certificate carries {@link markIdentifier}. Node's own certificate class does not show unknown extensions, and the
 * whole ASN.1 library is too much to load for each peer. Bytes that are not DER are no mark.
 */
export function carriesMark(certificate: Uint8Array): boolean {
  const wanted = encodeIdentifier(markIdentifier);
  const outer = elements(certificate)[0];
  const body = outer?.tag === SEQUENCE ? elements(outer.content)[0] : undefined;
  if (body?.tag !== SEQUENCE) return false;
  const wrapped = elements(body.content).find((element) => element.tag === EXTENSIONS);
  const list = wrapped === undefined ? undefined : elements(wrapped.content)[0];
  if (list?.tag !== SEQUENCE) return false;
  return elements(list.content).some((extension) => {
    const identifier = extension.tag === SEQUENCE ? elements(extension.content)[0] : undefined;
    return identifier?.tag === OBJECT_IDENTIFIER && Buffer.compare(identifier.content, wanted) === 0;
  });
}

/** The elements one after the other in `bytes`; stops at the first that does not fit. */
function elements(bytes: Uint8Array): readonly Element[] {
  const found: Element[] = [];
  let offset = 0;
  while (offset + 2 <= bytes.length) {
    const tag = bytes[offset] ?? 0;
    let length = bytes[offset + 1] ?? 0;
    offset += 2;
    if (length >= 0x80) {
      const width = length & 0x7f;
      if (width === 0 || width > 4 || offset + width > bytes.length) return found;
      length = 0;
      for (let index = 0; index < width; index++) length = length * 256 + (bytes[offset + index] ?? 0);
      offset += width;
    }
    if (offset + length > bytes.length) return found;
    found.push({ tag, content: bytes.subarray(offset, offset + length) });
    offset += length;
  }
  return found;
}

/** The content bytes of an OBJECT IDENTIFIER (X.690 §8.19). */
function encodeIdentifier(dotted: string): Uint8Array {
  const [first = 0, second = 0, ...rest] = dotted.split(".").map(Number);
  const bytes: number[] = [];
  for (const arc of [first * 40 + second, ...rest]) {
    const groups = [arc % 128];
    for (let left = Math.floor(arc / 128); left > 0; left = Math.floor(left / 128)) groups.unshift((left % 128) | 0x80);
    bytes.push(...groups);
  }
  return Uint8Array.from(bytes);
}
