/** Which model draws: one of the key's own trainings, or the deployment's base model. */
import { useEffect, useMemo, useState } from "preact/hooks";
import { api, result } from "../../api/client";
import { type JobSummary, isJobId } from "../../api/types";
import { moment } from "../../format";
import { attempt } from "../../parts/notices";
import { type List, listOf } from "../../state/list";
import { BASE_MODEL, isLora, nameOfModel, readStatus } from "../../state/pictures";
import { signIns } from "../../state/session";
import { texts } from "../../texts";

const words = texts.draw;
const PAGE = 100;

/** The key's finished trainings. */
export type Models = List<JobSummary>;

export function useModels(): Models {
  const trainings = useMemo(() => listOf(readPage), [signIns.value]);
  useEffect(() => void trainings.more(), [trainings]);
  return trainings;
}

async function readPage(cursor: string | undefined) {
  const query = { kind: ["train" as const], status: ["COMPLETED" as const], limit: PAGE, ...(cursor !== undefined && { cursor }) };
  const { jobs, next } = await result(api.GET("/jobs", { params: { query } }));
  return { items: jobs, next };
}

interface ModelChoiceProps {
  models: Models;
  chosen: string;
  choose: (model: string) => void;
  withLora: boolean;
  mistake: string | undefined;
}

export function ModelChoice({ models, chosen, choose, withLora, mistake }: ModelChoiceProps) {
  const { items: trainings, isBusy, hasMore, problem, more } = models;
  const isListed = chosen === BASE_MODEL || trainings.value.some((job) => job.id === chosen);
  return (
    <div class="field">
      <label for="draw-model">{words.model}</label>
      <select
        id="draw-model" value={chosen} aria-invalid={mistake !== undefined} aria-describedby="draw-model-hint draw-model-problem"
        onChange={(event) => choose(event.currentTarget.value)}
      >
        {!isListed && <option value={chosen}>{nameOfModel(chosen)}</option>}
        {trainings.value.length > 0 && (
          <optgroup label={words.trainings}>
            {trainings.value.map((job) => (
              <option key={job.id} value={job.id}>{`${moment(job.ended_at ?? job.created_at)} · ${job.id.slice(0, 8)}`}</option>
            ))}
          </optgroup>
        )}
        <option value={BASE_MODEL}>{words.base}</option>
      </select>
      {hasMore.value && !isBusy.value && (
        <button type="button" class="quiet" onClick={() => void more()}>{words.olderModels}</button>
      )}
      <p id="draw-model-hint" class="hint">{withLora ? words.isLora : ""}</p>
      <p id="draw-model-problem" class="problem">{mistake ?? problem.value?.message}</p>
    </div>
  );
}

/** The chosen model, or else the newest training, or else the base model. */
export const modelFor = ({ items }: Models, chosen: string | null): string => chosen ?? items.value[0]?.id ?? BASE_MODEL;

/** Whether a model is one of the key's trainings that has made a LoRA; false while that is not known. */
export function useIsLora(model: string): boolean {
  const [known, setKnown] = useState("");
  useEffect(() => {
    if (isJobId(model)) void attempt(async () => isLora((await readStatus(model)).input) && setKnown(model));
  }, [model]);
  return known === model;
}
