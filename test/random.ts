/**
 * Bytes that look random and are the same in every run: a test that passes once passes always. The stream starts anew with each
 * test file (vitest gives each its own modules), so one test alone may see other bytes than the whole file does.
 */
import { createCipheriv } from "node:crypto";

const stream = createCipheriv("aes-128-ctr", Buffer.alloc(16, "replicate"), Buffer.alloc(16));

export function randomBytes(count: number): Buffer {
  return stream.update(Buffer.alloc(count));
}
