// The server's API: JSON in and out, errors as one sentence each, the key kept for this tab.

const KEY = "embedkit-key";
let inMemory = null;

export function setKey(key) {
  inMemory = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // Storage may be forbidden: kept in memory then.
  }
}

function storedKey() {
  try {
    return inMemory ?? sessionStorage.getItem(KEY);
  } catch {
    return inMemory;
  }
}

export class ApiError extends Error {
  constructor(status, { message, param = null }, { retryAfter = 0, key = false } = {}) {
    super(message);
    // `key`: whether one was sent.
    Object.assign(this, { status, param, retryAfter, key });
  }
}

export async function ask(path, body = undefined, signal = undefined) {
  const key = storedKey();
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The server does not answer: it may have stopped, or the network may be down." });
  }
  let told;
  try {
    told = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    told = null;
  }
  if (answer.ok && told !== null) return told;
  const detail = told?.error ?? { message: `The server answered ${answer.status} and no more.` };
  throw new ApiError(answer.status, detail, { retryAfter: Number(answer.headers.get("Retry-After")) || 0, key: Boolean(key) });
}

export const indexesOf = () => ask("/indexes").then((told) => told.indexes);

export const tasksOf = (index) => ask(`/tasks?index=${encodeURIComponent(index)}`);

// `asked`: chunks, ids with commas between them, for their points alone; points: false for none.
export const mapOf = (index, asked = {}) => ask(`/map?${new URLSearchParams({ index, ...asked })}`);

// `some`: which snippets, and what else another search than the page's first would ask.
export function search(state, some, signal) {
  return ask(
    "/search",
    {
      query: state.q,
      index: state.index,
      tasks: state.columns.map((c) => c.task ?? { instruction: c.instruction }),
      k: state.k,
      ...(state.lang && { lang: state.lang }),
      ...(state.where.trim() && { where: state.where }),
      mode: state.mode,
      ...some,
    },
    signal,
  );
}
