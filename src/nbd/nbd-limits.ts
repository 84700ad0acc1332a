/** Limits of both ends of NBD: what a peer may make this process hold, and for how long. */
import { KIB, MIB } from "../base/units.ts";

export const nbdLimits = {
  /** Of a string on the wire, by the protocol. */
  stringBytesMax: 4_096,
  /** Of the data of an option: a name and some queries. */
  optionBytesMax: 32 * KIB,
  /** Of the data of a reply to an option: a name with its description. */
  optionReplyBytesMax: 16 * KIB,
  /** Replies to one option: exports of a server that are listed. */
  optionRepliesMax: 4_096,
  /** Data of these replies together. */
  optionAnswersBytesMax: MIB,
  /** Options of one negotiation at a server. */
  optionsMax: 64,
  /** Bytes a peer may send ahead of what negotiation has asked for. */
  negotiationAheadBytes: 64 * KIB,
  /** Contexts of one connection. */
  contextsMax: 16,
  /** Content of one request where the server names no maximum; by the protocol every server takes that. */
  requestBytesDefault: 32 * MIB,
  /** A client asks for at most so much with one request. */
  clientRequestBytesMax: 4 * MIB,
  /** Requests of a client under way on one connection. */
  clientRequestsMax: 64,
  /** Connections of one client where the server allows several. */
  clientConnectionsMax: 4,
  /** Of an error chunk. */
  errorChunkBytesMax: 8 * KIB,
  /** Of one block status chunk: QEMU sends up to 1 MiB of descriptors. */
  statusChunkBytesMax: 2 * MIB,
  /** Most pieces of content in the reply to one read that do not join: replies are not remembered beyond that. */
  contentPiecesMax: 4_096,
  /** For TCP, TLS and negotiation of one connection. */
  handshakeMillis: 10_000,
  /** A request that takes longer means a server that is gone. */
  requestMillis: 120_000,
  /** Connections of one server; who has not finished negotiation makes room for newer ones. */
  serverConnectionsMax: 64,
  /** Of a connection: requests under way, beside those that are served at once. */
  serverRequestsMax: 64,
  /** Of a connection: what it has received and not looked at. */
  serverLandingBytes: 320 * KIB,
  /** Of a connection: replies its client has not taken; beyond that nothing more is asked of the disk. */
  serverBacklogBytesMax: 4 * MIB,
  /** Content read or written with one call, and of one chunk of a reply. */
  serverPieceBytes: 512 * KIB,
  /** Of a connection: content of requests under way. */
  serverHeldBytesMax: 8 * MIB,
  /** Of all connections of a server together; one request of each is served all the same. */
  serverHeldBytesTotal: 64 * MIB,
  /** Descriptors of one block status reply. */
  statusDescriptorsMax: 8_192,
} as const;
