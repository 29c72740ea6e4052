// What columns share: where else a chunk stands, and how its rank changed against the first column.

// Map of chunk id to its rank in each column, undefined where it is not among the hits.
export function ranksOf(results) {
  const ranks = new Map();
  results.forEach((result, column) => {
    for (const hit of result.hits) {
      if (!ranks.has(hit.chunk_id)) ranks.set(hit.chunk_id, new Array(results.length));
      ranks.get(hit.chunk_id)[column] = hit.rank;
    }
  });
  return ranks;
}

export function changeOf(ranks, column) {
  if (column === 0) return null;
  const before = ranks[0];
  if (before === undefined) return { kind: "new", text: "new", spoken: "not in the first column" };
  const by = before - ranks[column];
  if (by === 0) return { kind: "same", text: "=", spoken: "same rank as in the first column" };
  return by > 0
    ? { kind: "up", text: `▲${by}`, spoken: `up ${by} against the first column` }
    : { kind: "down", text: `▼${-by}`, spoken: `down ${-by} against the first column` };
}

export function sharedBy(ranks, columns) {
  let all = 0;
  let some = 0;
  for (const row of ranks.values()) {
    const found = row.filter((rank) => rank !== undefined).length;
    if (found === columns) all += 1;
    if (found > 1) some += 1;
  }
  return { all, some };
}
