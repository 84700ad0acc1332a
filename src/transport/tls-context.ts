/** What every TLS context of ours has in common. */
import { constants } from "node:crypto";
import { createSecureContext, type SecureContextOptions } from "node:tls";

/** PEM texts. */
export interface ContextTexts {
  readonly ca: string;
  readonly certificate: string;
  readonly key: string;
}

/** AES-128-GCM first: the fastest of the three on machines with AES instructions. */
const ciphers = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

export function contextOptions({ ca, certificate, key }: ContextTexts): SecureContextOptions {
  return {
    ca,
    cert: certificate,
    key,
    minVersion: "TLSv1.3",
    ciphers,
    // No session is resumed: each connection shows its certificate and is checked anew.
    secureOptions: constants.SSL_OP_NO_TICKET,
  };
}

/** Throws OpenSSL's error when it does not take these, a key it finds too weak for one. */
export function tryContext(texts: ContextTexts): void {
  createSecureContext(contextOptions(texts));
}
