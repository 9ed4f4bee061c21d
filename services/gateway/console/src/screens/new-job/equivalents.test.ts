/// <reference types="node" />
import { execFileSync } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { commandLine, curl, python } from "./equivalents";
import { EMPTY, type Form, requestOf } from "../../state/new-job/request";

const FORM: Form = { ...EMPTY, train: { max_epochs: "100", amp: "false" }, images: [{ prompt: "ted's $HOME" }] };
const URL_ = "https://here/v2/everydream-v1";
const line = (form: Form, ofCheck = {}) => commandLine(form, "ID", "https://here", ofCheck).replaceAll(" \\\n ", "");

describe("curl", () => {
  it("sends the request, quoted for a shell, with the key from the environment", () => {
    const text = curl(requestOf(FORM, "ID"), URL_);
    expect(text).toContain("curl -X POST https://here/v2/everydream-v1/run");
    expect(text).toContain('"Authorization: Bearer $EVERYDREAM_API_KEY"');
    expect(text).toContain(`"prompt": "ted'\\''s $HOME"`);
    const body = text.slice(text.indexOf("-d '") + 4, -1).replaceAll("'\\''", "'");
    expect(JSON.parse(body)).toEqual(requestOf(FORM, "ID"));
  });
});

describe("Python", () => {
  it("writes values as Python does", () => {
    const text = python(requestOf({ ...FORM, validation: {} }, "ID"), URL_);
    expect(text).toContain('"amp": False,');
    expect(text).toContain('"validation": {},');
    expect(text).toContain('"prompt": "ted\'s $HOME",');
    expect(text).toContain('"https://here/v2/everydream-v1/run"');
  });
});

describe("a bucket's keys", () => {
  const bucket = { accessId: "AKIA-OURS", accessSecret: "hush", bucketName: "mine", endpointUrl: "https://s3.example.com" };
  const form: Form = { ...FORM, bucket, images: [{ prompt: "$HOME \\ `date`" }] };

  it("stand in no text, but variables in their place", () => {
    const texts = [curl(requestOf(form, "ID"), URL_), python(requestOf(form, "ID"), URL_), commandLine(form, "ID", "https://here")];
    for (const text of texts) {
      expect(text).not.toMatch(/AKIA-OURS|hush|[\u{f0000}]/u);
      expect(text).toContain("https://s3.example.com");
    }
    expect(texts[0]).toContain(`"accessSecret": "'"$BUCKET_ACCESS_SECRET"'"`);
    expect(texts[1]).toContain('"accessSecret": os.environ["BUCKET_ACCESS_SECRET"],');
  });

  it("are filled in by a shell, and nothing else is", () => {
    const env = { ...process.env, BUCKET_ACCESS_ID: "AKIA-OURS", BUCKET_ACCESS_SECRET: "hush" };
    const inFolder = { env, cwd: mkdtempSync(join(tmpdir(), "console-")), encoding: "utf8" } as const;
    const sent = execFileSync("bash", ["-c", `curl() { printf %s "\${@: -1}"; }\n${curl(requestOf(form, "ID"), URL_)}`], inFolder);
    expect(JSON.parse(sent)).toEqual(requestOf(form, "ID"));
    const written = execFileSync("bash", ["-c", `everydream() { cat job.json; }\n${commandLine(form, "ID", "https://here")}`], inFolder);
    const { input, s3Config } = JSON.parse(written);
    expect([s3Config, input.inference]).toEqual([bucket, form.images]);
  });
});

describe("the command line", () => {
  it("says what the form sets, and the prompts by flags", () => {
    expect(line(FORM)).toBe(
      `everydream run ID --url https://here --set amp=false --set max_epochs=100 --prompt 'ted'\\''s $HOME'`,
    );
  });

  it("says a preset by its name", () => {
    expect(line({ ...EMPTY, preset: "person", train: { lr: "1e-6" } })).toBe(
      "everydream run ID --url https://here --preset person --set lr=0.000001",
    );
  });

  it("undoes what the check was asked for and the form has not any more", () => {
    expect(line(EMPTY, { data_url: "x", max_epochs: 7, lr: 1e-6 })).toBe(
      "everydream run ID --url https://here --set max_epochs=300 --set lr=null",
    );
  });

  it("quotes a text that would be read as JSON", () => {
    expect(line({ ...EMPTY, train: { hf_repo_subfolder: "007" } })).toContain("--set hf_repo_subfolder=007");
    expect(line({ ...EMPTY, train: { hf_repo_subfolder: "7" } })).toContain(`--set 'hf_repo_subfolder="7"'`);
  });

  it("draws with one size and one set of flags for all prompts", () => {
    const images = ["one", "two"].map((prompt) => ({ prompt, width: "768", num_outputs: "2" }));
    expect(line({ ...EMPTY, images })).toBe("everydream run ID --url https://here --prompt one --prompt two --size 768x512 --count 2");
  });

  it("writes a file where prompts differ in their settings", () => {
    const images = [{ prompt: "one", width: "768" }, { prompt: "two", passback: "2" }];
    const text = line({ ...FORM, images });
    expect(text).toContain("--config job.json");
    expect(JSON.parse(text.split("\n").slice(1, -2).join("\n"))).toEqual({
      train: { amp: false, max_epochs: 100 },
      inference: [{ prompt: "one", width: 768 }, { prompt: "two", passback: "2" }],
    });
  });
});
