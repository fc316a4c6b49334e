# A Kafka that is broker and controller. Stands where Strimzi's is on a cluster that can pull images.
ARG BASE
FROM ${BASE}
COPY libs /opt/kafka/libs
COPY log4j2.properties /opt/kafka/
COPY --chmod=755 kafka-entrypoint /usr/local/bin/
USER 1001
EXPOSE 9092
ENTRYPOINT ["kafka-entrypoint"]
