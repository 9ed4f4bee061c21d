/** Which model draws: one of the key's own trainings, or the deployment's base model. */
import { type Signal, useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { api, result } from "../../api/client";
import type { JobSummary } from "../../api/types";
import { moment } from "../../format";
import { BASE_MODEL, nameOfModel } from "../../state/pictures";
import { texts } from "../../texts";

const words = texts.draw;
const PAGE = 100;
/** Trainings are among all jobs: one look reads so many pages for them. */
const LONGEST_LOOK = 5;

export interface Models {
  trainings: Signal<readonly JobSummary[]>;
  isBusy: Signal<boolean>;
  hasMore: Signal<boolean>;
  problem: Signal<unknown>;
  more: () => Promise<void>;
}

export function useModels(): Models {
  const trainings = useSignal<readonly JobSummary[]>([]);
  const isBusy = useSignal(false);
  const hasMore = useSignal(true);
  const problem = useSignal<unknown>(undefined);
  const cursor = useSignal<string | undefined>(undefined);

  const more = async () => {
    if (isBusy.value) return;
    isBusy.value = true;
    problem.value = undefined;
    try {
      for (let page = 0, found = 0; page < LONGEST_LOOK && hasMore.value && !found; page++) {
        const query = { status: ["COMPLETED" as const], limit: PAGE, ...(cursor.value && { cursor: cursor.value }) };
        const answer = await result(api.GET("/jobs", { params: { query } }));
        const those = answer.jobs.filter((job) => job.kind === "train");
        trainings.value = [...trainings.value, ...those];
        found = those.length;
        cursor.value = answer.next ?? undefined;
        hasMore.value = answer.next !== null;
      }
    } catch (error) {
      problem.value = error;
    } finally {
      isBusy.value = false;
    }
  };
  useEffect(() => void more(), []);
  return { trainings, isBusy, hasMore, problem, more };
}

interface ModelChoiceProps {
  models: Models;
  /** null: nothing is chosen yet. */
  model: Signal<string | null>;
  mistake: string | undefined;
}

export function ModelChoice({ models, model, mistake }: ModelChoiceProps) {
  const { trainings, isBusy, hasMore, problem, more } = models;
  const chosen = modelFor(models, model.value);
  const isListed = chosen === BASE_MODEL || trainings.value.some((job) => job.id === chosen);
  return (
    <div class="field">
      <label for="draw-model">{words.model}</label>
      <select
        id="draw-model" value={chosen} aria-invalid={mistake !== undefined} aria-describedby="draw-model-problem"
        onChange={(event) => void (model.value = event.currentTarget.value)}
      >
        {!isListed && <option value={chosen}>{nameOfModel(chosen)}</option>}
        {trainings.value.length > 0 && (
          <optgroup label={words.trainings}>
            {trainings.value.map((job) => (
              <option key={job.id} value={job.id}>{`${moment(job.ended_at ?? job.created_at)} · ${job.id}`}</option>
            ))}
          </optgroup>
        )}
        <option value={BASE_MODEL}>{words.base}</option>
      </select>
      {hasMore.value && !isBusy.value && (
        <button type="button" class="quiet" onClick={() => void more()}>{words.olderModels}</button>
      )}
      <p id="draw-model-problem" class="problem">{mistake ?? (problem.value ? (problem.value as Error).message : "")}</p>
    </div>
  );
}

/** The chosen model, or else the newest training, or else the base model. */
export const modelFor = ({ trainings }: Models, chosen: string | null): string =>
  chosen ?? trainings.value[0]?.id ?? BASE_MODEL;
