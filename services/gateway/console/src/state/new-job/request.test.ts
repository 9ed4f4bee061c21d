import { beforeAll, describe, expect, it, vi } from "vitest";
import { EMPTY, type Form, formOf, imagePath, mistakesOf, placeOf, remaining, requestOf, sorted } from "./request";

beforeAll(() => void vi.stubGlobal("navigator", { languages: ["en"] }));

const FULL: Form = {
  ...EMPTY,
  train: { max_epochs: "100", lr: "3e-6", shuffle_tags: "true", keep_tags: "2", resume_ckpt_url: "runwayml/stable" },
  validation: { every_n_epochs: "5" },
  samplePrompts: "a photo of ted\nted at sea",
  images: [{ prompt: "ted, painted", width: "768", seed: "7" }, { prompt: "ted" }],
};

describe("the request", () => {
  it("of an empty form names nothing but the data", () => {
    expect(requestOf(EMPTY, "DATA")).toEqual({ input: { train: { data_url: "DATA" } } });
  });

  it("has each value in its type", () => {
    expect(requestOf(FULL, "DATA")).toEqual({
      input: {
        train: {
          data_url: "DATA", max_epochs: 100, lr: 3e-6, shuffle_tags: true, keep_tags: 2, resume_ckpt_url: "runwayml/stable",
          validation: { every_n_epochs: 5 }, sample_prompts: ["a photo of ted", "ted at sea"],
        },
        inference: [{ prompt: "ted, painted", width: 768, seed: 7 }, { prompt: "ted" }],
      },
    });
  });

  it("has a preset's values where nothing else is typed", () => {
    const { train } = requestOf({ ...EMPTY, preset: "person", train: { lr: "1e-6" } }, "DATA").input;
    expect(train).toEqual({ data_url: "DATA", lora_rank: 64, lora_conv_rank: 64, lr: 1e-6, flip_p: 0 });
  });

  it("has lists of numbers, and their mistakes", () => {
    const form = { ...EMPTY, images: [{ prompt: "ted", loras: "0.8, -1  .5" }] };
    expect(requestOf(form, "DATA").input.inference).toEqual([{ prompt: "ted", loras: [0.8, -1, 0.5] }]);
    expect(formOf(requestOf(form, "DATA").input).images[0]).toEqual({ prompt: "ted", loras: "0.8, -1, 0.5" });
    expect(mistakesOf({ ...EMPTY, images: [{ prompt: "ted", loras: "0.8, 11" }] })["input.inference[0].loras"]).toContain("from -10 to 10");
  });

  it("leaves out entries without a prompt", () => {
    expect(requestOf({ ...EMPTY, images: [{ width: "768" }, { prompt: " " }] }, "DATA").input.inference).toBeUndefined();
  });

  it("of a form that was made from an input is that input", () => {
    const { input } = requestOf(FULL, "DATA");
    expect(requestOf(formOf(input), "DATA")).toEqual({ input });
    expect(formOf({ train: { data_url: "x", max_epochs: 300, lr: null }, inference: { prompt: "one" } })).toEqual({
      ...EMPTY, images: [{ prompt: "one" }],
    });
  });

  it("of a form that was made from an input has the preset that made it", () => {
    const form: Form = { ...EMPTY, preset: "person", train: { lr: "1e-6" } };
    expect(formOf(requestOf(form, "DATA").input)).toEqual(form);
    const { train } = requestOf({ ...form, train: { lora_rank: "16" } }, "DATA").input;
    expect(formOf({ train })).toEqual({ ...EMPTY, train: { lora_rank: "16", lora_conv_rank: "64" } });
  });
});

const BUCKET = { accessId: "ID", accessSecret: "s3cret", bucketName: "mine", endpointUrl: "https://s3.example.com" };

describe("bucket, webhook and limits", () => {
  it("stand beside the input, the usual event unsaid", () => {
    const form: Form = { ...EMPTY, bucket: { ...BUCKET, objectPath: "" }, webhook: " https://me.example/hook ", policy: { ttl: "86400000", lowPriority: "true" } };
    const { input: _input, ...beside } = requestOf(form, "DATA");
    expect(beside).toEqual({ s3Config: BUCKET, webhook: "https://me.example/hook", policy: { ttl: 86400000, lowPriority: true } });
    expect(requestOf({ ...form, webhookEvents: ["start"] }, "DATA").webhook_events_filter).toEqual(["start"]);
    expect(requestOf({ ...form, webhook: "", webhookEvents: ["start"] }, "DATA").webhook_events_filter).toBeUndefined();
  });

  it("that are half filled in or odd are mistakes at their fields", () => {
    const form: Form = { ...EMPTY, bucket: { bucketName: "s3://mine", accessId: "a b" }, webhook: "ftp://me", webhookEvents: [], policy: { ttl: "1" } };
    expect(Object.keys(mistakesOf(form)).sort()).toEqual([
      "policy.ttl", "s3Config.accessId", "s3Config.accessSecret", "s3Config.bucketName", "s3Config.endpointUrl", "webhook", "webhook_events_filter",
    ]);
    expect(mistakesOf({ ...EMPTY, bucket: { ...BUCKET, objectPath: " " } })).toEqual({});
  });

  it("come back from the server to their fields, until those are others", () => {
    const { byPath, others } = sorted(["s3Config.endpointUrl: expected another", "webhook: may not be called", "policy.ttl: expected more"]);
    expect(Object.keys(byPath)).toEqual(["s3Config.endpointUrl", "webhook", "policy.ttl"]);
    expect(others).toEqual([]);
    const before: Form = { ...EMPTY, bucket: BUCKET, webhook: "https://me.example", policy: { ttl: "20000" } };
    expect(remaining(byPath, before, before)).toEqual(byPath);
    expect(remaining(byPath, before, EMPTY)).toEqual({});
  });

  it("are not copied from an earlier job, whatever its answer has", () => {
    const told = { train: { data_url: "x" }, s3Config: BUCKET, webhook: "https://me.example" };
    expect(formOf(told)).toEqual(EMPTY);
  });
});

describe("mistakes", () => {
  it("are named by their place in the request before it is sent", () => {
    const form = { ...FULL, train: { lr: "9" }, validation: { seed: "-1" }, images: [{}, { prompt: "ted", width: "1" }] };
    expect(Object.keys(mistakesOf(form))).toEqual(["input.train.lr", "input.train.validation.seed", "input.inference[0].width"]);
    expect(imagePath(placeOf(form, 1))).toBe("input.inference[0]");
  });

  it("of the server are over once their field is another", () => {
    const byPath = { "input.train.lr": "a", "input.inference[1].prompt": "b", "input.train.sample_prompts": "c", "input.train.validation.seed": "d" };
    expect(remaining(byPath, FULL, FULL)).toEqual(byPath);
    const mended = { ...FULL, train: {}, validation: { seed: "1" }, samplePrompts: "", images: FULL.images.slice(0, 1) };
    expect(remaining(byPath, FULL, mended)).toEqual({});
  });

  it("of the server stand at their fields, others apart", () => {
    const { byPath, others } = sorted([
      "input.train.lr: expected a number, got 'x'",
      "input.train.validation.seed: expected an integer",
      "input.inference[1].width: expected one of these",
      "input.train.data_url: expected an upload that is finished",
      "input.train.lrr: unknown; did you mean lr?",
      "a sentence: of its own",
    ]);
    expect(byPath).toEqual({
      "input.train.lr": "Expected a number, got 'x'",
      "input.train.validation.seed": "Expected an integer",
      "input.inference[1].width": "Expected one of these",
    });
    expect(others).toHaveLength(3);
  });
});
