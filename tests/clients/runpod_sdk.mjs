// A user of the npm package `runpod-sdk`: every method, and what came of it as JSON.
//
// Run where the package is installed, with the base URL, a key, and the requests as JSON.

import runpodSdk from "runpod-sdk";

const [base, key, requests] = process.argv.slice(1);
const asked = JSON.parse(requests);
const endpoint = runpodSdk(key, { baseUrl: base }).endpoint("everydream-v1");

async function collected(chunks) {
  const outputs = [];
  for await (const chunk of chunks) outputs.push(chunk.output);
  return outputs;
}

async function errorOf(call) {
  try {
    await call;
  } catch (error) {
    return `${error.response?.status}: ${error.response?.data?.error}`;
  }
  throw new Error("it went well");
}

// One job is cancelled while it trains, another while it waits behind it.
async function cutShort() {
  const endless = await endpoint.run(asked.endless);
  const chunks = endpoint.stream(endless.id);
  let first;
  do first = (await chunks.next()).value.output;
  while (!first.step);
  const waiting = await endpoint.run(asked.small);
  return {
    first,
    health: await endpoint.health(),
    purged: await endpoint.purgeQueue(),
    waiting: (await endpoint.status(waiting.id)).status,
    cancelled: await endpoint.cancel(endless.id),
    status: (await endpoint.status(endless.id)).status,
    rest: await collected(chunks),
  };
}

async function failed() {
  const job = await endpoint.run(asked.failing);
  return endpoint.statusSync(job.id, 60000);
}

// A job's whole stream, and its model put to use again.
async function completed() {
  const job = await endpoint.run(asked.small);
  return {
    streamed: await collected(endpoint.stream(job.id)),
    ...(await endpoint.status(job.id)),
    runSync: await endpoint.runSync({ input: { model: job.id, ...asked.again } }),
  };
}

async function refused() {
  const stranger = runpodSdk("wrong", { baseUrl: base }).endpoint("everydream-v1");
  return {
    "wrong key": await errorOf(stranger.health()),
    mistake: await errorOf(endpoint.run({ input: { train: {} } })),
  };
}

const told = {
  "cut short": await cutShort(),
  failed: await failed(),
  completed: await completed(),
  refused: await refused(),
};
// The package prints to the console too, as it waits: only the last line is ours.
console.log("\n" + JSON.stringify(told));
