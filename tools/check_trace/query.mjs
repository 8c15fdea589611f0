// node query.mjs FOLDER TRACE: what Perfetto makes of a trace; exit status 1 if it finds fault with it, 2 if it can't be asked.

import { readFileSync } from 'node:fs';
import { Processor } from './rpc.mjs';

const CATEGORIES = ['communication', 'compute', 'host', 'waiting'];

const [folder, file] = process.argv.slice(2);
process.on('uncaughtException', (error) => {
  console.error(`error: ${file}: ${String(error?.message ?? error).trim().split('\n').at(-1)}`);
  process.exit(2);
});
const processor = await Processor.start(folder);
const trace = readFileSync(file);
processor.load(trace);

const show = (sql) => {
  const rows = processor.query(sql);
  console.log(`> ${sql}`);
  rows.forEach((row) => console.log('  ' + Object.entries(row).map(([name, value]) => `${name} ${value}`).join(', ')));
  return rows;
};
const faults = [];
const none = (what, sql) => {
  if (show(sql).length > 0) faults.push(what);
};

const found = show('select category, count(*) as slices, round(sum(dur) / 1e6, 3) as ms from slice group by category order by category');
if (found.length === 0) faults.push('it has no slices');
if (found.some((row) => !CATEGORIES.includes(row.category))) faults.push('it has other categories than ours');
const threads = show('select p.pid as pid, p.name as process, t.name as thread, count(*) as slices, max(s.depth) as deepest from slice s ' +
  'join thread_track k on s.track_id = k.id join thread t using (utid) join process p using (upid) group by p.pid, t.tid order by 1, t.tid');
// A thread's slices are on a track of their own, and all there.
const tracks = threads.map(({ pid, thread, slices }) => `${pid} ${thread} ${slices}`);
const events = JSON.parse(trace).traceEvents;
const lanes = events.filter(({ ph, name }) => ph === 'M' && name === 'thread_name').map(({ pid, tid, args }) => {
  const slices = events.filter((event) => event.ph === 'X' && event.pid === pid && event.tid === tid).length;
  return `${pid} ${args.name} ${slices}`;
});
if (tracks.join() !== lanes.filter((lane) => !lane.endsWith(' 0')).join()) faults.push(`it should have the threads and slices ${lanes.join(', ')}`);
none('Perfetto reports errors', "select name, value from stats where severity in ('error', 'data_loss') and value > 0");
none('durations are negative, or never end', 'select name, ts, dur from slice where dur < 0 limit 5');
none('slices end behind those around them',
  'select s.name, p.name as around from slice s join slice p on s.parent_id = p.id where s.ts + s.dur > p.ts + p.dur limit 5');
none('communication of ranks lacks its operation or bytes',
  "select s.name, s.ts from slice s join thread_track k on s.track_id = k.id join thread t using (utid) where category = 'communication' " +
  "and t.name = 'rank' and (extract_arg(s.arg_set_id, 'args.op') is null or extract_arg(s.arg_set_id, 'args.bytes') is null) limit 5");

console.log(faults.length === 0 ? `${file}: Perfetto reads all of it` : `${file}: ${faults.join('; ')}`);
process.exit(faults.length === 0 ? 0 : 1);
