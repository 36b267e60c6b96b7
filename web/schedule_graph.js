// What the live schedule reads from a graph and says about an answer: plain functions, without the page.

export const POLICY_NODES = ["PABBroadcast", "PABPolicy"];

const OWN = ["policy", "name", "spatial_range", "temporal_range", "cross_range", "mlp", "window_start", "window_stop", "kept"];
const SIZE = ["steps", "width", "height", "frames"];
const POOL = ["devices", "method"];

function linkOf(graph, id) {
  return graph?.links?.get?.(id) ?? graph?.links?.[id];
}

/** The node at the other end of the first link of an output. */
export function target(node, output) {
  const link = linkOf(node.graph, node.outputs?.[output]?.links?.[0]);
  return link && node.graph.getNodeById(link.target_id);
}

/** The node at the other end of an input's link. */
export function source(node, name) {
  const slot = node?.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot < 0 ? undefined : (node.getInputNode?.(slot) ?? undefined);
}

function values(node, names) {
  const found = names
    .map((name) => [name, node?.widgets?.find((widget) => widget.name === name)?.value])
    .filter(([, value]) => value !== undefined);
  return Object.fromEntries(found);
}

/** What the picture depends on: the node's own widgets, and those of the sampler and loader that it is wired to. */
export function settings(node) {
  const sampler = target(node, 0);
  const loader = source(sampler, "model");
  const download = source(loader, "checkpoint");
  const { name, ...own } = values(node, OWN);
  if (name?.trim()) own.policy = name.trim();
  const machine = { ...values(loader, ["model", "speed"]), ...values(source(sampler, "workers"), POOL) };
  return { ...own, ...values(sampler, SIZE), ...machine, ...values(download, ["model"]) };
}

/** What must be equal for two runs' times to be compared. */
export function runKey(asked) {
  return JSON.stringify(["model", "speed", ...SIZE, ...POOL].map((name) => asked[name]));
}

export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = count;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${size >= 100 || unit === 0 ? Math.round(size) : size.toFixed(1)} ${units[unit]}`;
}

function seconds(time) {
  return `${time < 10 ? time.toFixed(1) : Math.round(time)} s`;
}

/** The lines under the picture. `offSeconds`: of a run of this size without reuse, where one was made. */
export function predictedLines(answer, offSeconds) {
  const shares = Object.entries(answer.reused ?? {}).map(([kind, share]) => `${kind} ${percent(share)}`);
  let line = `saves ${percent(answer.saving)} of the arithmetic`;
  if (offSeconds > 0 && answer.saving > 0) line += `, about ${seconds(offSeconds * answer.saving)} of ${seconds(offSeconds)}`;
  if (answer.kept_bytes > 0) line += `; keeps ${bytes(answer.kept_bytes)}`;
  return [line, `reused: ${shares.join(", ")}`];
}

/** The line about the last run, as the sampler measured it. */
export function measuredLine(measured, offSeconds) {
  let line = `measured: ${seconds(measured.seconds)} with ${measured.policy}`;
  if (offSeconds > 0 && measured.policy !== "off") line += `, ${(offSeconds / measured.seconds).toFixed(2)}x as fast as off`;
  if (measured.kept_bytes > 0) line += `; kept ${bytes(measured.kept_bytes)}`;
  return line;
}
