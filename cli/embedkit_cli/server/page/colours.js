// One colour a task: the same one whenever it can be, and never two columns alike.

const COUNT = 8;
const FAMILIAR = ["qa", "duplicate", "bitext", "code", "topic", "paraphrase", "search", "fact-check"];

function preferred(name) {
  const place = FAMILIAR.indexOf(name);
  if (place >= 0) return place;
  let sum = 0;
  for (const c of name) sum = (sum * 31 + c.codePointAt(0)) % 9973;
  return sum % COUNT;
}

export function coloursOf(columns) {
  const taken = new Set();
  const given = columns.map(() => -1);
  const take = (i, colour) => {
    given[i] = colour;
    taken.add(colour);
  };
  // Named tasks first: own words change as they are typed.
  columns.forEach((c, i) => {
    if (c.task !== undefined && !taken.has(preferred(c.task))) take(i, preferred(c.task));
  });
  columns.forEach((c, i) => {
    if (given[i] < 0) take(i, [...Array(COUNT).keys()].findLast((n) => !taken.has(n)) ?? i % COUNT);
  });
  return given;
}
