// Perfetto's trace processor in this process, asked as its user interface asks it: messages of trace_processor.proto.

import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import vm from 'node:vm';

// TraceProcessorMethod
const APPEND = 1, FINALIZE = 2, QUERY = 3;
// Fields of TraceProcessorRpc, AppendTraceDataResult and QueryResult
const SEQ = 1, REQUEST = 2, DATA = 101, QUERY_ARGS = 103, APPENDED = 201, RESULT = 203;
const NAMES = 1, ERROR = 2, BATCH = 3;
const CELLS = 1, VARINTS = 2, FLOATS = 3, STRINGS = 5;
const PIECE = 1 << 20;

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return [...bytes, value];
}

const number = (field, value) => Buffer.from([...varint(field << 3), ...varint(value)]);
const bytes = (field, value) => Buffer.concat([Buffer.from([...varint((field << 3) | 2), ...varint(value.length)]), value]);

function* varints(from) {
  for (let at = 0; at < from.length; ) {
    let value = 0n;
    for (let shift = 0n, more = true; more; shift += 7n) {
      value |= BigInt(from[at] & 127) << shift;
      more = from[at++] > 127;
    }
    yield [BigInt.asIntN(64, value), at];
  }
}

function* fields(from) {
  const next = () => {
    const [value, end] = varints(from).next().value;
    from = from.subarray(end);
    return Number(value);
  };
  while (from.length > 0) {
    const key = next();
    const length = [() => next(), () => 8, () => next(), , , () => 4][key & 7]();
    if ((key & 7) === 0) {
      yield [key >> 3, length];
      continue;
    }
    yield [key >> 3, from.subarray(0, length)];
    from = from.subarray(length);
  }
}

// Cells of one batch of a result, row after row.
function* cells(batch) {
  const kinds = [], values = { 2: [], 3: [], 4: [] };
  for (const [field, value] of fields(batch)) {
    if (field === CELLS) kinds.push(...value);
    if (field === VARINTS) values[2].push(...[...varints(value)].map(([n]) => n));
    if (field === FLOATS) for (let at = 0; at < value.length; at += 8) values[3].push(value.readDoubleLE(at));
    if (field === STRINGS) values[4].push(...value.toString().split('\0'));
  }
  for (const kind of kinds) yield kind === 1 ? null : values[kind].shift();
}

export class Processor {
  #replies = [];
  #sequence = 0;
  #port = { postMessage: (reply) => this.#replies.push(Buffer.from(reply)) };

  // Starts the worker of the user interface whose files are in `folder`, with what it needs of a browser.
  static async start(folder) {
    class XMLHttpRequest {
      open(_, url) { this.url = url; }
      send() {
        const file = readFileSync(join(folder, basename(this.url)));
        [this.status, this.response] = [200, file.buffer.slice(file.byteOffset, file.byteOffset + file.length)];
      }
    }
    const location = { href: 'http://localhost/engine_bundle.js', protocol: 'http:', host: 'localhost' };
    const self = { location };
    const quiet = { log() {}, warn() {}, error() {} };
    const worker = {
      self, location, XMLHttpRequest, console: quiet, WorkerGlobalScope() {}, importScripts() {},
      WebAssembly, TextDecoder, TextEncoder, URL, performance, crypto, setTimeout, clearTimeout, Promise,
      Error, TypeError, RangeError, ArrayBuffer, DataView, Int8Array, Uint8Array, Int16Array, Uint16Array,
      Int32Array, Uint32Array, Float32Array, Float64Array, BigInt64Array, BigUint64Array,
    };
    vm.runInNewContext(readFileSync(join(folder, 'engine_bundle.js'), 'utf8'), worker);
    const processor = new Processor();
    self.onmessage({ data: processor.#port });
    // The module is there; what the worker does with it follows at once.
    await new Promise((resolve) => setTimeout(resolve));
    return processor;
  }

  #call(method, field, body) {
    const args = body ? [bytes(field, body)] : [];
    const message = Buffer.concat([number(SEQ, ++this.#sequence), number(REQUEST, method), ...args]);
    this.#port.onmessage({ data: new Uint8Array(bytes(1, message)) });
    const replies = [...fields(Buffer.concat(this.#replies.splice(0)))];
    return replies.map(([, reply]) => new Map(fields(reply)));
  }

  // Takes a whole trace.
  load(trace) {
    for (let at = 0; at < trace.length; at += PIECE) {
      for (const reply of this.#call(APPEND, DATA, trace.subarray(at, at + PIECE))) {
        const error = [...fields(reply.get(APPENDED) ?? Buffer.alloc(0))].find(([field]) => field === 2);
        if (error) throw new Error(error[1].toString());
      }
    }
    this.#call(FINALIZE);
  }

  // The rows of a query, as objects. Integers are BigInt.
  query(sql) {
    const names = [], values = [];
    for (const reply of this.#call(QUERY, QUERY_ARGS, bytes(1, Buffer.from(sql)))) {
      for (const [field, value] of fields(reply.get(RESULT) ?? Buffer.alloc(0))) {
        if (field === NAMES) names.push(value.toString());
        if (field === ERROR && value.length > 0) throw new Error(value.toString());
        if (field === BATCH) values.push(...cells(value));
      }
    }
    const row = (at) => Object.fromEntries(names.map((name, i) => [name, values[at * names.length + i]]));
    return Array.from({ length: names.length ? values.length / names.length : 0 }, (_, at) => row(at));
  }
}
